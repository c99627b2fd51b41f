"""Pictures: files, tiles, colour fixes, metrics, degradations, and pictures drawn by a program. No network, no solver."""
