"""What tests of several networks share."""

import pytest
import torch


@pytest.fixture
def scene_graphs():
    """Builds a batch of graphs for a captioner: chains of nodes with random features, one length each."""

    def build(counts=(5, 3, 1), nodes=6, features=6, image=5, seed=0):
        random = torch.Generator().manual_seed(seed)
        mask = torch.arange(nodes) < torch.tensor(counts)[:, None]
        types = torch.arange(nodes).remainder(3).expand(len(counts), -1) * mask
        # node n + 1 hears from node n and the other way round; types alternate
        chain = torch.diag(torch.ones(nodes - 1), -1) * mask[:, :, None] * mask[:, None]
        alone = mask & (chain.sum(1) == 0)
        return {
            "mp_fts": torch.randn(len(counts), image, generator=random),
            "attn_fts": torch.randn(len(counts), nodes, features, generator=random) * mask[..., None],
            "attn_masks": mask,
            "node_types": types,
            "attr_order_idxs": (types == 1).long(),
            "rel_edges": torch.stack([chain, chain.mT, chain / 2] * 2, 1),
            "flow_edges": chain + torch.diag_embed(alone.float()),
        }

    return build
