"""What `tagcos demo` works on."""
