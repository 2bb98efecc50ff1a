"""Selection methods: ours and the controls."""
