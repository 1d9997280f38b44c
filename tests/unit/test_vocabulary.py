"""Names files, templates, grouping, the background, and text features with their cache."""

import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from ovss_bench.datasets.demo.loader import DemoDataset
from ovss_bench.runs.evaluate import fingerprint, make_job, run_jobs
from ovss_bench.vocabulary import TEMPLATES, read_names
from parity.seeded import clip_state_dict, query_features

NAMES = [["sky", "wall"], ["cat"], ["dog", "puppy", "cat"]]


def names_file(folder, text):
    path = folder / "names.txt"
    path.write_text(text)
    return path


def test_a_names_file_has_a_line_per_class(tmp_path):
    path = names_file(tmp_path, "sky, wall,road \ncat\n  dog ,  big  dog\n")
    assert read_names(path) == ([["sky", "wall", "road"], ["cat"], ["dog", "big  dog"]], [])
    vocabulary = ob.Vocabulary.from_file(path, background=True)
    assert vocabulary.queries == ("sky", "wall", "road", "cat", "dog", "big  dog")
    assert vocabulary.group == (0, 0, 0, 1, 2, 2)
    assert vocabulary.classes == ("sky", "cat", "dog")


def test_a_names_file_may_quote_commas_and_list_distractors(tmp_path):
    path = names_file(tmp_path, 'cat\n"person with clothes, people, human", man\ndistractors: sky, "sea, lake"\n')
    assert read_names(path) == ([["cat"], ["person with clothes, people, human", "man"]], ["sky", "sea, lake"])
    vocabulary = ob.Vocabulary.from_file(path)
    assert vocabulary.group == (0, 1, 1, -1, -1)
    assert vocabulary.classes == ("cat", "person with clothes, people, human")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\n\ncat\n", "line 2"),
        ("sky\ncat,\n", "line 2"),
        ("sky\ncat,,dog\n", "line 2"),
        ("  \n", "is empty"),
        ("sky\ncat\nsky, heaven\n", r"'sky' is listed twice, in lines 1 and 3"),
        ("", "is empty"),
    ],
)
def test_bad_names_files_are_refused(text, message, tmp_path):
    path = names_file(tmp_path, text)
    with pytest.raises(ob.OvssError, match=rf"{path}.*{message}"):
        read_names(path)


def test_a_names_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x80")
    for name in ("names.txt", "missing.txt"):
        with pytest.raises(ob.OvssError, match=rf"{name} cannot be read"):
            read_names(tmp_path / name)


def test_repeated_queries_are_allowed(tmp_path):
    vocabulary = ob.Vocabulary.from_file(names_file(tmp_path, "cat, cat\ndog, cat\n"))
    assert vocabulary.queries == ("cat", "cat", "dog", "cat")
    assert vocabulary.group == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one"),
        (["cat", ""], "class 1 has an empty name"),
        (["cat", []], "class 1 has an empty name"),
        (["cat", ["dog", " "]], "class 1 has an empty name"),
        (["cat", "dog", "cat"], r"'cat' is listed twice: as class 0 and as class 2"),
    ],
)
def test_bad_names_are_refused(names, message):
    with pytest.raises(ob.OvssError, match=message):
        ob.Vocabulary.from_names(names)


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("imagenet80", 80, "a bad photo of a {}.", "a tattoo of the {}."),
        ("maskclip85", 85, "a bad photo of a {}.", "this is one {} in the scene."),
        ("car15", 15, "a clean origami {}.", "There is a large {} in the scene."),
        ("photo_bare", 1, "a photo of a {}", "a photo of a {}"),
        ("notebook7", 7, "itap of a {}.", "a photo of the small {}."),
        ("photo", 1, "a photo of a {}.", "a photo of a {}."),
        ("none", 1, "{}", "{}"),
    ],
)
def test_template_sets(name, count, first, last):
    templates = TEMPLATES[name]
    assert (len(templates), len(set(templates)), templates[0], templates[-1]) == (count, count, first, last)
    assert all(template.count("{}") == 1 for template in templates)


def test_the_lists_are_those_of_open_clip():
    for name, theirs in (("imagenet80", "OPENAI_IMAGENET_TEMPLATES"), ("notebook7", "SIMPLE_IMAGENET_TEMPLATES")):
        assert TEMPLATES[name] == tuple(template("{}") for template in getattr(open_clip, theirs))


def test_maskclip_adds_five_templates_to_the_eighty():
    assert TEMPLATES["maskclip85"][:80] == TEMPLATES["imagenet80"]
    assert TEMPLATES["imagenet80"][1] == "a photo of many {}."


def test_an_unknown_template_set_lists_close_ones():
    with pytest.raises(ob.OvssError, match=r"imagnet80.*imagenet80"):
        ob.Vocabulary.from_names(["cat"], templates="imagnet80")


@pytest.mark.parametrize(("given", "index"), [(True, 0), (False, None), (None, None), (0, 0), (2, 2)])
def test_background_policy(given, index):
    assert ob.Vocabulary.from_names(NAMES, background=given).background == index
    assert ob.Vocabulary.from_features(query_features(1, 3), background=given).background == index


@pytest.mark.parametrize("background", [3, -1])
def test_a_background_outside_the_classes_is_refused(background):
    with pytest.raises(ob.OvssError, match=f"background class {background}"):
        ob.Vocabulary.from_names(NAMES, background=background)


def test_distractors_belong_to_no_class():
    vocabulary = ob.Vocabulary.from_names(NAMES, distractors=["noise", "blur"])
    assert vocabulary.queries[-2:] == ("noise", "blur")
    assert vocabulary.group == (0, 0, 1, 2, 2, 2, -1, -1)
    assert len(vocabulary.classes) == 3


@pytest.mark.parametrize("templates", TEMPLATES)
def test_features_are_the_average_over_templates(templates, tiny_clip):
    vocabulary = ob.Vocabulary.from_names(NAMES, templates=templates, distractors=["noise"])
    tokenize = open_clip.get_tokenizer("ViT-B-16")
    expected = []
    for query in vocabulary.queries:
        with torch.no_grad():
            prompts = tiny_clip.model.encode_text(
                tokenize([template.replace("{}", query) for template in TEMPLATES[templates]])
            )
        average = (prompts / prompts.norm(dim=1, keepdim=True)).mean(0)
        expected.append(average / average.norm())
    torch.testing.assert_close(vocabulary.features(tiny_clip), torch.stack(expected), rtol=0, atol=1e-6)


def test_cached_features_are_the_same_and_need_no_text_tower(tiny_clip, monkeypatch):
    names = ["one thing", "another thing"]
    first = ob.Vocabulary.from_names(names, templates="photo").features(tiny_clip)

    def refuse(*_):
        raise AssertionError("the text tower was called again")

    monkeypatch.setattr(tiny_clip, "encode_text", refuse)
    assert torch.equal(ob.Vocabulary.from_names(names, templates="photo").features(tiny_clip), first)
    for changed in ({"templates": "none"}, {"distractors": ["x"]}):
        with pytest.raises(AssertionError, match="called again"):
            ob.Vocabulary.from_names(names, **({"templates": "photo"} | changed)).features(tiny_clip)


def test_the_cache_knows_weights_and_activation_apart(tiny_state_dict):
    vocabulary = ob.Vocabulary.from_names(["cat", "dog"], templates="photo")
    clips = [
        ob.load_clip(state_dict=tiny_state_dict),
        ob.load_clip(state_dict=tiny_state_dict, activation="gelu"),
        ob.load_clip(state_dict=clip_state_dict(12)),
    ]
    for clip in clips:
        with torch.no_grad():
            expected = F.normalize(clip.model.encode_text(clip.tokenizer(["a photo of a cat.", "a photo of a dog."])), dim=-1)
        torch.testing.assert_close(vocabulary.features(clip), expected, rtol=0, atol=1e-6)


def test_given_features_are_normalised(tiny_clip):
    features = 7 * query_features(3, 5)
    vocabulary = ob.Vocabulary.from_features(features, [0, 1, 1, 2, 0])
    torch.testing.assert_close(vocabulary.features(tiny_clip), query_features(3, 5))
    assert len(vocabulary.classes) == 3


@pytest.mark.parametrize("group", [[0, 1], [0, 1, 2, 3]])
def test_a_group_of_another_length_is_refused(group):
    with pytest.raises(ob.OvssError, match=f"3 text features but {len(group)} entries"):
        ob.Vocabulary.from_features(query_features(3, 3), group)


def test_the_digest_follows_everything_that_counts():
    base = {"names": NAMES, "background": True, "templates": "photo"}
    variants = [base, base | {"background": False}, base | {"templates": "none"}, base | {"names": NAMES[::-1]}]
    variants += [base | {"names": [["sky"], ["wall", "cat"], ["dog", "puppy", "cat"]]}, base | {"distractors": ["x"]}]
    digests = [ob.Vocabulary.from_names(**options).digest for options in variants]
    digests += [ob.Vocabulary.from_features(query_features(seed, 3)).digest for seed in (1, 2)]
    assert len(set(digests)) == len(digests)
    assert ob.Vocabulary.from_names(**base).digest == digests[0]


def test_a_vocabulary_of_another_size_is_refused_by_a_data_set(tiny_clip, tiny_vocabulary, tmp_path):
    demo = ob.load_dataset("demo")
    with pytest.raises(ob.OvssError, match=r"4 classes.*'demo' has 37"):
        ob.evaluate(ob.build_segmentor("clip", clip=tiny_clip, vocabulary=tiny_vocabulary), demo, limit=1)
    with pytest.raises(ob.OvssError, match=r"2 classes.* 37"):
        demo.vocabulary(str(names_file(tmp_path, "cat\ndog\n")), "photo")
    with pytest.raises(ob.OvssError, match=r"names variant.*demmo.*demo"):
        demo.vocabulary("demmo", "photo")


def test_templates_come_from_a_file(tiny_clip, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff# for aerial photographs\na photo of a {}.\n\n  {} seen from {above}  \r\n".encode())
    vocabulary = ob.Vocabulary.from_names(["cat", "big {dog}"], templates=str(path))
    assert (vocabulary.templates, vocabulary.prompts) == (str(path), ("a photo of a {}.", "{} seen from {above}"))
    expected = tiny_clip.encode_text(["a photo of a big {dog}.", "big {dog} seen from {above}"]).mean(0)
    torch.testing.assert_close(vocabulary.features(tiny_clip)[1], F.normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_the_content_of_a_templates_file_counts_not_its_name(tmp_path):
    digests = []
    for name, text in (("a.txt", "a {}\n"), ("b.txt", "a {}"), ("a.txt", "the {}\n")):
        (tmp_path / name).write_text(text)
        digests.append(ob.Vocabulary.from_names(["cat"], templates=tmp_path / name).digest)
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / "photo.txt").write_text("a photo of a {}.")
    named = [ob.Vocabulary.from_names(["cat"], templates=name).digest for name in ("photo", tmp_path / "photo.txt")]
    assert named[0] == named[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}\na photo\n", r"line 2: 'a photo' contains {} 0 times"),
        ("{} and {}", "line 1.* contains {} 2 times"),
        ("a {0}", "line 1"),
        ("# only a comment\n\n", "is empty"),
        (b"\xff\xfe\x80", "cannot be read"),
    ],
)
def test_bad_templates_files_are_refused(text, message, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ob.OvssError, match=rf"templates file {path}.*{message}"):
        ob.Vocabulary.from_names(["cat"], templates=path)


def test_a_templates_file_that_is_not_there(tmp_path):
    with pytest.raises(ob.OvssError, match=r"nothing.txt does not exist.*template per line.*imagenet80"):
        ob.Vocabulary.from_names(["cat"], templates=str(tmp_path / "nothing.txt"))


def test_a_recipe_takes_a_templates_file(tmp_path):
    prints = []
    for text in ("a {}", "the {}"):
        (tmp_path / "mine.txt").write_text(text)
        overrides = {"templates": str(tmp_path / "mine.txt"), "window": 48, "stride": 48}
        job = make_job("clip", ob.load_clip("demo"), ob.load_dataset("demo"), overrides=overrides)
        assert job.segmentor.vocabulary.prompts == (text,)
        prints.append(fingerprint(job, job.dataset.select(1)))
    assert prints[0] != prints[1]


def test_a_names_file_with_semicolons_is_warned_of(tmp_path):
    path = names_file(tmp_path, "sky\ncat; dog\nsand, sea; lake\n")
    with pytest.warns(UserWarning, match=r"names.txt, line 2 and 1 others: the ';' is taken as part of a name") as notes:
        assert read_names(path)[0] == [["sky"], ["cat; dog"], ["sand", "sea; lake"]]
    assert len(notes) == 1
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("default")
        for _ in range(3):
            read_names(path)
        read_names(names_file(tmp_path, "sky\ncat\n"))
    assert len(notes) == 1


def test_a_text_is_encoded_before_the_images_and_shown(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path))
    overrides = {"templates": "notebook7", "window": 48, "stride": 48, "resize": "none"}
    jobs = [
        make_job(name, ob.load_clip("demo"), DemoDataset("demo", {"seed": 1, "scenes": 1}), overrides=overrides)
        for name in ("clip", "sclip")
    ]
    queries = len(set(jobs[0].segmentor.vocabulary.queries))
    results = run_jobs(jobs)
    lines = capfd.readouterr().err.splitlines()
    title = f"texts of demo, {queries} names x 7 templates: {7 * queries} prompts"
    starts = [i for i, line in enumerate(lines) if line.startswith("texts of demo")]
    assert lines[starts[0]] == title
    assert lines[starts[-1]].startswith(f"{title} in ")
    assert starts[-1] < next(i for i, line in enumerate(lines) if line == "clip, sclip on demo: 1 images")
    timing = results[0].data["timing"]
    assert next(iter(timing["stages"])) == "text"
    assert timing["images_per_second"] == round(1 / (timing["seconds"] - timing["stages"]["text"]), 2)
    run_jobs(jobs)
    assert "texts of" not in capfd.readouterr().err


def test_features_without_a_row_are_refused():
    with pytest.raises(ob.OvssError, match="no text feature belongs to a class"):
        ob.Vocabulary.from_features(torch.empty(0, 8))
