"""Bridges to other libraries, none of which is imported here: each module speaks their interface in plain tensors."""
