"""Entry points of `torch.hub.load`: encoders that `dic3l export` wrote, as torchvision networks.

    torch.hub.load("OWNER/REPOSITORY", "encoder", path="encoder.pt")       # or source="local" and a clone

Needs torch and torchvision alone, nothing of this repository.
"""

dependencies = ["torch", "torchvision"]

_ARCHS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}
"""(blocks have a third convolution, blocks of stage 3) -> network"""


def encoder(path, arch=None):
    """A torchvision ResNet for inference, its classifier an identity: (N, channels, H, W) -> pooled features (N, D).

    path: .pt, .pth or .safetensors of `dic3l export`, or the https:// address of a .pt or .pth; arch: resnet18,
    resnet34, resnet50, resnet101, where the file has to be of that one; default: the one that it is of. Channels are
    those of the first convolution, one or three. Raises ValueError where the file is of another network, RuntimeError
    where its weights do not fit.
    """
    import torch
    from torchvision import models

    state = {name: value for name, value in _read(str(path)).items() if not name.startswith("fc.")}
    blocks = {name.split(".")[1] for name in state if name.startswith("layer3.")}
    found = _ARCHS.get(("layer1.0.conv3.weight" in state, len(blocks)))
    if found is None or arch not in (None, found):
        raise ValueError(f"{path}: weights of {arch or 'a ResNet of dic3l'} expected, those of {found} found")
    network = models.get_model(found, weights=None)
    network.fc = torch.nn.Identity()
    if state["conv1.weight"].shape[1] == 1:
        network.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network.load_state_dict(state, strict=True)
    return network.eval()


def _read(path):
    import torch

    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    if path.startswith("https://"):
        return torch.hub.load_state_dict_from_url(path, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True)
