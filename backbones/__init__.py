"""Models for dosde: closed-form ones, and adapters of networks, one family a module. Nothing heavy loads before its use."""
