# SPDX-License-Identifier: Apache-2.0
"""Questions over documents: corpora, retrieval, answers, their scores and cost (for ../cag.py)."""
