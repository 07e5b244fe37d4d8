# SPDX-License-Identifier: Apache-2.0
"""The engines that benchmarks/compare runs side by side, each in a process of its own."""
