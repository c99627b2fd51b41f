"""Training: what a low-resolution picture is made of (`degradation`), and the pictures themselves (`data`, `procedural`).

Nothing here is loaded by `import backbones`. Pillow and OpenCV come with the extra `images`.
"""
