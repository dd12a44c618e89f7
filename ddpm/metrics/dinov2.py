"""DINOv2's vision transformer (Oquab et al. 2023) from a file of its weights, where torch.hub has no network."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

from ddpm.errors import UserError

Tensor = torch.Tensor
# Pixels of a patch's side, and channels of one head, of all its sizes.
PATCH, HEAD = 14, 64


def weights_of(path: str) -> dict[str, Tensor]:
    """The state dict of a file; UserError where it is none."""
    if not Path(path).is_file():
        raise UserError(f"fidelity.weights: {path}: no such file; it must be dinov2_vitl14_pretrain.pth")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"fidelity.weights: {path}: is no plain state dict of tensors ({why})") from None
    if not isinstance(found, dict) or not all(isinstance(of, Tensor) for of in found.values()):
        raise UserError(f"fidelity.weights: {path}: is no plain state dict of tensors")
    return found


class Transformer(nn.Module):
    """(B, 3, H, W), normalised → the class token after the last layer and its norm, (B, width).

    tensors: DINOv2's own. A layer is x ← x + γ₁ attention(norm(x)), x ← x + γ₂ mlp(norm(x)); γ is multiplied into the
    linear map before it, which makes of it torch's `TransformerEncoderLayer`.
    """

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        width = tensors["cls_token"].shape[-1]
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        self.token, self.position = nn.Parameter(tensors["cls_token"]), nn.Parameter(tensors["pos_embed"])
        self.patches, self.norm = nn.Conv2d(3, width, PATCH, PATCH), nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // HEAD, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self._load(self.patches, tensors, "patch_embed.proj")
        self._load(self.norm, tensors, "norm")
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.TransformerEncoderLayer)
            at = f"blocks.{i}"
            for into, name in ((layer.norm1, "norm1"), (layer.norm2, "norm2"), (layer.linear1, "mlp.fc1")):
                self._load(into, tensors, f"{at}.{name}")
            layer.self_attn.in_proj_weight.data.copy_(tensors[f"{at}.attn.qkv.weight"])
            layer.self_attn.in_proj_bias.data.copy_(tensors[f"{at}.attn.qkv.bias"])
            self._load(layer.self_attn.out_proj, tensors, f"{at}.attn.proj", tensors[f"{at}.ls1.gamma"])
            self._load(layer.linear2, tensors, f"{at}.mlp.fc2", tensors[f"{at}.ls2.gamma"])

    @staticmethod
    def _load(layer: nn.Module, tensors: dict[str, Tensor], name: str, gamma: Tensor | None = None) -> None:
        for part, parameter in layer.named_parameters():
            tensor = tensors[f"{name}.{part}"]
            if gamma is not None:
                tensor = tensor * (gamma[:, None] if part == "weight" else gamma)
            parameter.data.copy_(tensor)

    def places(self, rows: int, columns: int) -> Tensor:
        """The embeddings of the class token and of a grid of patches, resized from the grid of its training, by its own
        scale: 0.1 of a patch too large."""
        side = round((self.position.shape[1] - 1) ** 0.5)
        if rows == columns == side:
            return self.position
        grid = self.position[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.position[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self.places(*patches.shape[2:])
        for layer in self.layers:
            x = layer(x)
        return self.norm(x[:, 0])


class FromFile(FeatureExtractorDinoV2):
    """torch-fidelity's extractor, whose own constructor takes no file."""

    def __init__(self, weights: str):
        FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
        self.feature_extractor_internal_dtype = torch.float32
        try:
            self.model = Transformer(weights_of(weights))
        except (KeyError, RuntimeError, ValueError) as e:
            why = f"it lacks {e}" if isinstance(e, KeyError) else str(e).splitlines()[0]
            raise UserError(f"fidelity.weights: {weights}: not DINOv2's weights: {why}") from None
        self.requires_grad_(False)
        self.eval()
