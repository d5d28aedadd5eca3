//! Runs a hypervisor process with nothing but what it needs.
