"""`python -m vae_kernels`: versions, what is built, and which backend serves which device."""

import platform

import torch

import vae_kernels as vk
from vae_kernels.backends import current_backend


def main() -> None:
    print(f"vae_kernels {vk.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"CUDA of torch: {torch.version.cuda or 'none'}, GPUs: {torch.cuda.device_count()}, CPU threads: ", end="")
    print(torch.get_num_threads())
    for device, table in vk.backends().items():
        print(f"\n{device} tensors: {current_backend(device)}")
        for name, state in table.items():
            if name == "cpp" and state == "available":
                state = f"available ({torch.ops.vae_kernels_cpp.isa()})"
            print(f"  {name:7} {state}")


if __name__ == "__main__":
    main()
