"""Several prediction tables that become one."""
