"""The operations that networks are made of, one function each; `cpu/` and `tpu/` hold what these do differently.

* `convolution`: `conv`, `pointwise` over the channels of images, and `matmul` over the last axis
* `doubled`: `conv_of_doubled`, of images whose pixels are repeated
* `norm`: `group_norm`
* `attention`: `attention`; `merged_attention`: of one head, with the maps around it
* `parts`: images in parts, whose channels lie side by side
* `hashing`: `random_bits` of array elements
"""
