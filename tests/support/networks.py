"""Networks of other people, written as their authors and torchvision write them, with a width of choice."""

import torch
import torch.nn.functional as F
from torch import nn

# ---- ResNet: K. He et al., arXiv:1512.03385


def conv3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def conv1(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Block of ResNet-18, with one ReLU module for all of its activations."""

    expansion = 1

    def __init__(self, inputs, width, stride=1, downsample=None):
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, width, stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv3(width, width), nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """Block of ResNet-50."""

    expansion = 4

    def __init__(self, inputs, width, stride=1, downsample=None):
        super().__init__()
        self.conv1, self.bn1 = conv1(inputs, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv1(width, 4 * width), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + identity)


class ResNet(nn.Module):
    def __init__(self, block, depths, width=64, classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        inputs = width
        for number, depth in enumerate(depths):
            planes, layers = width << number, []
            for index in range(depth):
                stride, outputs, downsample = 1 + (index == 0 < number), planes * block.expansion, None
                if stride > 1 or inputs != outputs:
                    downsample = nn.Sequential(conv1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
                layers.append(block(inputs, planes, stride, downsample))
                inputs = outputs
            setattr(self, f"layer{number + 1}", nn.Sequential(*layers))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(width=64):
    return ResNet(BasicBlock, (2, 2, 2, 2), width)


def resnet50(width=64):
    return ResNet(Bottleneck, (3, 4, 6, 3), width)


# ---- MobileNetV3-Large: A. Howard et al., arXiv:1905.02244


class ConvNormActivation(nn.Sequential):
    """Block like torchvision's: the batch norm comes last where there is no activation."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, activation=None):
        layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)]
        layers += [nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01)]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(self.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    def __init__(self, inputs, kernel, expanded, outputs, squeeze, activation, stride):
        super().__init__()
        self.use_residual = stride == 1 and inputs == outputs
        layers = [] if expanded == inputs else [ConvNormActivation(inputs, expanded, 1, activation=activation)]
        layers += [ConvNormActivation(expanded, expanded, kernel, stride, expanded, activation)]
        layers += [SqueezeExcitation(expanded, max(1, expanded // 4))] if squeeze else []
        self.block = nn.Sequential(*layers, ConvNormActivation(expanded, outputs, 1))

    def forward(self, x):
        result = self.block(x)
        if self.use_residual:
            result += x
        return result


class MobileNetV3(nn.Module):
    # kernel, expanded, outputs, squeeze-and-excitation, activation, stride
    BLOCKS = (
        (3, 16, 16, False, nn.ReLU, 1),
        (3, 64, 24, False, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 1),
        (5, 72, 40, True, nn.ReLU, 2),
        (5, 120, 40, True, nn.ReLU, 1),
        (5, 120, 40, True, nn.ReLU, 1),
        (3, 240, 80, False, nn.Hardswish, 2),
        (3, 200, 80, False, nn.Hardswish, 1),
        (3, 184, 80, False, nn.Hardswish, 1),
        (3, 184, 80, False, nn.Hardswish, 1),
        (3, 480, 112, True, nn.Hardswish, 1),
        (3, 672, 112, True, nn.Hardswish, 1),
        (5, 672, 160, True, nn.Hardswish, 2),
        (5, 960, 160, True, nn.Hardswish, 1),
        (5, 960, 160, True, nn.Hardswish, 1),
    )

    def __init__(self, divisor=1, classes=1000):
        super().__init__()
        layers, channels = [ConvNormActivation(3, 16 // divisor, 3, 2, activation=nn.Hardswish)], 16 // divisor
        for kernel, expanded, outputs, squeeze, activation, stride in self.BLOCKS:
            sizes = expanded // divisor, outputs // divisor
            layers.append(InvertedResidual(channels, kernel, *sizes, squeeze, activation, stride))
            channels = outputs // divisor
        layers.append(ConvNormActivation(channels, 960 // divisor, 1, activation=nn.Hardswish))
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(960 // divisor, 1280 // divisor), nn.Hardswish(), nn.Dropout(0.2),
            nn.Linear(1280 // divisor, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


# ---- DenseNet-121: G. Huang et al., arXiv:1608.06993


class DenseLayer(nn.Module):
    """Layer whose batch norms come first, and which takes one tensor or a list of them."""

    def __init__(self, inputs, growth, drop_rate):
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv1(inputs, 4 * growth)
        self.norm2, self.relu2, self.conv2 = (
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            conv3(4 * growth, growth),
        )
        self.drop_rate = drop_rate

    def forward(self, input):
        features = [input] if isinstance(input, torch.Tensor) else input
        bottleneck = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        new = self.conv2(self.relu2(self.norm2(bottleneck)))
        if self.drop_rate > 0:
            new = F.dropout(new, self.drop_rate, self.training)
        return new


class DenseBlock(nn.ModuleDict):
    def __init__(self, depth, inputs, growth, drop_rate):
        super().__init__()
        for index in range(depth):
            self.add_module(f"denselayer{index + 1}", DenseLayer(inputs + index * growth, growth, drop_rate))

    def forward(self, first):
        features = [first]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, growth=32, drop_rate=0.0, classes=1000):
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, channels, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        depths = 6, 12, 24, 16
        for index, depth in enumerate(depths):
            self.features.add_module(f"denseblock{index + 1}", DenseBlock(depth, channels, growth, drop_rate))
            channels += depth * growth
            if index < len(depths) - 1:
                transition = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), conv1(channels, channels // 2)]
                self.features.add_module(f"transition{index + 1}", nn.Sequential(*transition, nn.AvgPool2d(2)))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


# ---- U-Net: O. Ronneberger et al., arXiv:1505.04597, with batch norm


class DoubleConv(nn.Module):
    """Block that applies its activation as a function."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, outputs), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class UNet(nn.Module):
    def __init__(self, width=64, depth=4, classes=2):
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(DoubleConv(*sizes) for sizes in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in widths[-2::-1])
        self.merge = nn.ModuleList(DoubleConv(2 * size, size) for size in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for block in self.down:
            x = block(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


# ---- DCGAN: A. Radford et al., arXiv:1511.06434


def dcgan_generator(width=64, latent_dim=100):
    layers, inputs = [], latent_dim
    for outputs, stride, padding in ((8, 1, 0), (4, 2, 1), (2, 2, 1), (1, 2, 1)):
        layers += [nn.ConvTranspose2d(inputs, outputs * width, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(outputs * width), nn.ReLU(True)]
        inputs = outputs * width
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def dcgan_discriminator(width=64):
    layers = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for factor in (1, 2, 4):
        layers += [nn.Conv2d(factor * width, 2 * factor * width, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(2 * factor * width), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, bias=False), nn.Flatten(0))
