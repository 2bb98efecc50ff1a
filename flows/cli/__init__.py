"""The `tagcos` command: one module for each group of subcommands."""
