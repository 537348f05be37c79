"""The slimmable ViT: backbones, reducers, checkpoints. Needs torch and timm."""
