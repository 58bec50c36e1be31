# SPDX-License-Identifier: Apache-2.0
from common.cli.documents import PACKED_PLACE, bundle_commands, dead_links, packed_readme, target_of, wrong_commands

README = """See [conventions](../../../docs/conventions.md#metrics), [another](../../other_x/docs/README.md) and
[the licence](../LICENSE), [a page](https://example.org/a), [above](#data), ![a plot](training/curves.png).

From the root of the repository; from the bundle's folder give `configs/…` instead of `bundles/a_x/configs/…`.

```bash
torchrun -m monai.bundle run training --epochs 3 \\
    --config_file "['bundles/a_x/configs/train.json','bundles/a_x/configs/two.json']"
python -m common options a_x
```
"""


def test_a_packed_readme_stays_in_its_folder():
    packed = packed_readme(README, "a_x", "scripts.common")
    assert (
        "See conventions (`docs/conventions.md` of the repository), another (`bundles/other_x/docs/README.md` "
        in packed
    )
    for kept in (
        "[the licence](../LICENSE)",
        "[a page](https://example.org/a)",
        "[above](#data)",
        "(training/curves.png)",
    ):
        assert kept in packed
    assert f"\n{PACKED_PLACE}\n" in packed
    assert "\"['configs/train.json','configs/two.json']\"" in packed
    assert "python -m scripts.common options a_x" in packed


def test_links_are_resolved_against_the_documents_folder():
    assert target_of("../LICENSE", "docs") == "LICENSE"
    assert target_of("training/x.png#y", "docs") == "docs/training/x.png"
    assert target_of("#data", "docs") is None and target_of("mailto:a@b", "docs") is None
    assert dead_links("[a](b.md) [c](../LICENSE) [d](https://e)", {"LICENSE"}) == ["b.md"]


def test_commands_are_read_with_their_options():
    packed = packed_readme(README, "a_x", "scripts.common")
    configs = {"configs/train.json": {"training": [], "epochs": 1}, "configs/two.json": {}}
    ((run_id, *words),) = bundle_commands(packed)
    assert (run_id, words[:3]) == ("training", ["--epochs", "3", "--config_file"])
    assert wrong_commands(packed, configs) == []
    del configs["configs/train.json"]["epochs"]
    assert wrong_commands(packed, configs) == ["'training' is given --epochs, no key of its files"]
    assert wrong_commands(packed, {}) == ["'training' reads configs/train.json, configs/two.json, which is not packed"]
