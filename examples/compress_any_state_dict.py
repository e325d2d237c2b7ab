"""Compress the weights of any PyTorch model to a size in bytes, and look at what that costs."""

import torch

import codec

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256))
state = model.state_dict()

blob = codec.compress(state, budget=120_000)  # no config and no tokenizer: the pack holds weights only
restored = codec.decompress(blob)

count = sum(tensor.numel() for tensor in state.values())
print(f"{4 * count:,} bytes of float32 -> {len(blob):,} bytes, {8 * len(blob) / count:.2f} bits a weight")
for name, tensor in state.items():
    error = (tensor - restored[name]).square().sum() / tensor.square().sum()
    print(f"{name:10} {tuple(tensor.shape)!s:12} squared error, over its square, {error:.4f}")

model.load_state_dict(restored)
