"""The networks that fill the roles, a file a family."""
