"""VGG-16 with batch normalisation as it is trained on CIFAR: five poolings bring 32 pixels down to one."""

from __future__ import annotations

from torch import nn
from torchvision import models, transforms

#: Mean and standard deviation of the training pictures of CIFAR-100, by channel.
MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


def network() -> tuple[nn.Module, transforms.Compose]:
    """The network with random weights, and its preprocessing of RGB PIL images."""
    vgg = models.vgg16_bn(weights=None, num_classes=100)
    vgg.avgpool = nn.Identity()
    vgg.classifier = nn.Linear(512, 100)
    transform = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return vgg, transform
