"""HTTP data plane, admin plane, command line and the composition of all of the rooms below."""
