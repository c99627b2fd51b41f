"""Training: the config, the pictures (`data`), the tasks, the loop.

Nothing here is loaded by `import backbones`. Pillow and OpenCV come with the extra `images`.
"""
