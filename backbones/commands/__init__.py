"""The commands of `dosde`, one a module: `add` describes its arguments, `run` does it."""
