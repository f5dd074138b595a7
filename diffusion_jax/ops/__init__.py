"""The operations that networks are made of, one function each; `cpu/` holds what the CPU does differently.

* `convolution`: `conv`, and `matmul` over the last axis
* `doubled`: `conv_of_doubled`, of images whose pixels are repeated
* `norm`: `group_norm`
* `attention`: `attention`
* `hashing`: `random_bits` of array elements
"""
