"""MobileNets as plain `nn.Module`s, one paper a file."""
