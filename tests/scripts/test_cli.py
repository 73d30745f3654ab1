"""The command line: a whole run in its own process, and every kind of bad input."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.cli import COMMANDS, main
from scripts.progress import BarReporter, LineReporter

ROOT = Path(__file__).parents[2]
SMALL = ["--width", "32", "--height", "32", "--num-frames", "7", "--num-steps", "2"]


def command(*arguments):
    return [sys.executable, "-m", "scripts.cli", *arguments]


@pytest.fixture
def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def error_of(capsys, *arguments):
    """The one line on standard error of a refused call."""
    assert main(["generate", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mochi-tt: error: ")
    return lines[0]


def test_a_whole_run_leaves_a_video_and_its_record(small_checkpoint, here, environment):
    import imageio_ffmpeg

    long = "red " * 300
    arguments = [long, "--negative-prompt", "blue", "--model", small_checkpoint, "--mesh", "1x1", "--seed", "3", *SMALL]
    done = subprocess.run(
        command("generate", *arguments), cwd=here, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("mode golden: ")
    assert "not on silicon" in lines[0]
    assert "denoise 2/2" in done.stdout
    assert any("tokens were cut" in line and "256 are used" in line for line in lines)
    assert done.stderr == ""

    files = sorted(path.name for path in (here / "outputs").iterdir())
    name = "red-" * 14 + "red"
    assert files == [f"{name}-3.json", f"{name}-3.mp4"]
    reader = imageio_ffmpeg.read_frames(str(here / "outputs" / files[1]))
    meta = next(reader)
    assert (meta["codec"], meta["fps"], meta["size"]) == ("h264", 30.0, (32, 32))
    assert sum(1 for _ in reader) == 7

    record = json.loads((here / "outputs" / files[0]).read_text())
    assert record["mode"] == "golden"
    assert record["layout"].startswith("1x1sp")
    assert record["arguments"]["prompt"] == long
    assert record["arguments"]["negative_prompt"] == "blue"
    assert record["arguments"]["guidance_scale"] == 4.5, "the checkpoint's own default"
    assert len(record["sigmas"]) == 3
    assert record["guidance_schedule"] == [4.5, 4.5]
    assert record["seed"] == 3
    assert record["tokens"]["prompt"]["used"] == 256
    assert record["tokens"]["prompt"]["cut"] > 0
    assert set(record["versions"]) == {"mochi-tt", "ttnn", "torch", "diffusers", "transformers"}
    assert set(record["seconds"]) == {"load", "encode", "denoise", "decode", "write"}
    assert record["checkpoint"]["transformer"]["fingerprint"]


# The run interrupts itself, so it is always in the middle of denoising, however fast it is.
INTERRUPTED = """
import os, signal, sys
from scripts.cli import main
from scripts.progress import LineReporter

# A shell that starts the tests in the background has them ignore interrupts, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
show = LineReporter.progress

def show_and_interrupt(reporter, stage, done, total):
    show(reporter, stage, done, total)
    if (stage, done) == ("denoise", 2):
        print("interrupting")
        os.kill(os.getpid(), signal.SIGINT)

LineReporter.progress = show_and_interrupt
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_leaves_nothing(small_checkpoint, here, environment):
    arguments = ["generate", "x", "--model", str(small_checkpoint), "--mesh", "1x1", *SMALL, "--num-steps", "8"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert "interrupting" in done.stdout
    assert "denoise 8/8" not in done.stdout
    assert done.stderr.splitlines() == ["mochi-tt: interrupted, no file is left half-written"]
    assert [p.name for p in here.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-frames", "8"], "num_frames 8 must be 6k + 1 with k >= 0: the nearest valid is 7 or 13"),
        (["--width", "100"], "width 100 must be a positive multiple of 16: the nearest valid is 96 or 112"),
        (["--height", "-16"], "height -16"),
        (["--width", "wide"], "--width"),
        (["--num-steps", "0"], "steps 0"),
        (["--reuse", "on"], "reuse 'on' is not known"),
        (["--reuse", "-0.1"], "must be above 0 and at most 1"),
        (["--reuse", "steps:0"], "step 0 cannot be reused"),
        (["--reuse", "steps:none.json"], "none.json does not exist"),
        (["--cfg-scale", "0.5"], "at least 1"),
        (["--threshold-noise", "1.5"], "threshold_noise 1.5"),
        (["--linear-steps", "8"], "linear_steps 8"),
        (["--seed", "-1"], "seed -1"),
        (["--fps", "0"], "fps 0"),
        (["--first-frames", "comfyui"], "first_frames 'comfyui' must be genmo"),
        (["--empty-prompt", "none"], "empty_prompt 'none' must be zeros"),
        (["--mesh", "2by4"], "'2by4'"),
        (["--layout", "sp0"], "layout 'sp0'"),
        (["--layout", "4x2sp0tp1"], "is for mesh 4x2"),
        (["--mesh", "1x3"], "does not divide 8 attention heads"),
        (["--mode", "fast"], "mode 'fast'"),
        (["--mode", "dry-run"], "makes no video"),
        (["--variant", "bf16"], "variant 'bf16'"),
        (["--out", "a.avi"], "must end with .mp4"),
        (["--out", "file/a.mp4"], "cannot be written"),
        (["--bogus"], "No such option"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(small_checkpoint, here, capsys, arguments, message):
    if "--mesh" in arguments and "1x3" in arguments:
        arguments = [*arguments, "--layout", "sp0tp1"]
    (here / "file").write_text("")
    assert message in error_of(capsys, "x", "--model", small_checkpoint, *arguments)
    assert [p.name for p in here.iterdir()] == ["file"]


def test_a_checkpoint_that_is_not_there(here, capsys):
    assert "no checkpoint at ./nowhere" in error_of(capsys, "x", "--model", "./nowhere")
    assert "no model_index.json" in error_of(capsys, "x", "--model", here)


def test_a_checkpoint_of_another_model(small_copy, here, capsys):
    path = small_copy / "transformer" / "config.json"
    path.write_text(path.read_text().replace("MochiTransformer3DModel", "WanTransformer3DModel"))
    assert "weights of another model" in error_of(capsys, "x", "--model", small_copy)


def test_a_truncated_or_missing_file(small_copy, here, capsys):
    shard = next((small_copy / "transformer").glob("*00001*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"{shard.name} " in error_of(capsys, "x", "--model", small_copy)
    shard.unlink()
    assert f"lacks the shard {shard.name}" in error_of(capsys, "x", "--model", small_copy)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_where_an_error_comes_from(small_checkpoint, here, capsys, before):
    arguments = ["generate", "x", "--model", str(small_checkpoint), "--num-frames", "8"]
    assert main(["--debug", *arguments] if before else [*arguments, "--debug"]) == 2, "the code is the same"
    *traceback, line = capsys.readouterr().err.splitlines()
    assert traceback[0].startswith("Traceback")
    assert line.startswith("mochi-tt: error: num_frames 8")


def test_what_follows_two_dashes_is_no_option(here, capsys):
    assert main(["generate", "--width", "17", "--", "--debug"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("of ours"), ZeroDivisionError(), OSError("lost"), KeyError("x")])
def test_an_error_of_the_program_is_not_called_the_users(small_checkpoint, here, monkeypatch, capsys, error):
    from scripts import generate

    def fail(*_):
        raise error

    monkeypatch.setattr(generate, "run", fail)
    assert main(["generate", "x", "--model", str(small_checkpoint)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    found = re.fullmatch(r"mochi-tt: sorry, this is a fault of mochi-tt, .* its traceback is in (\S+\.log): .*", line)
    assert found is not None, line
    text = Path(found[1]).read_text()
    assert "Traceback" in text
    assert "in fail" in text
    Path(found[1]).unlink()
    assert main(["generate", "x", "--model", str(small_checkpoint), "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "in fail" in shown
    Path(re.search(r"\S+\.log", shown)[0]).unlink()


def test_a_full_disk_is_not_a_fault_of_the_program(small_checkpoint, here, monkeypatch, capsys):
    from scripts import generate

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generate, "run", fail)
    assert "No space left on device" in error_of(capsys, "x", "--model", small_checkpoint)


def test_an_empty_prompt_is_said_and_accepted(small_checkpoint, here, capsys):
    assert main(["generate", "", "--model", str(small_checkpoint), "--mesh", "1x1", *SMALL]) == 0
    assert "the prompt is empty: it is encoded as zeros" in capsys.readouterr().out


def test_names_do_not_overwrite_each_other(here):
    from models.jobs.generate import free_name

    first = free_name("A red ball; rolls!", 7)
    assert str(first) == "outputs/a-red-ball-rolls-7.mp4"
    first.parent.mkdir()
    first.touch()
    assert free_name("A red ball; rolls!", 7).name == "a-red-ball-rolls-7-2.mp4"
    assert free_name("赤い玉", 7).name == "赤い玉-7.mp4"
    assert free_name("?!", 7).name == "video-7.mp4"
    for letter in ("玉", "é", "𐍈", "x"):
        assert len(os.fsencode(free_name(letter * 500, 2**63 - 1).name)) <= 200


def test_a_name_is_ascii_where_files_must_be(monkeypatch):
    from models.jobs import generate

    monkeypatch.setattr(generate.os, "fsencode", lambda text: text.encode("ascii"))
    assert generate.free_name("赤い玉 ball", 7).name == "ball-7.mp4"
    assert generate.free_name("赤い玉", 7).name == "video-7.mp4"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_that_cannot_name_a_file_is_told_before_any_work(here, environment):
    done = subprocess.run(
        [*command("generate", "x"), "--out", "🎬.mp4".encode()], cwd=here, env=environment | ASCII, capture_output=True
    )
    (line,) = done.stderr.decode("ascii").splitlines()
    assert done.returncode == 2
    assert "cannot write (ascii): set LC_ALL=C.UTF-8" in line
    assert list(here.iterdir()) == []


def test_a_prompt_of_any_script_is_read_under_any_locale(here, environment):
    script = "import sys; from scripts import cli; cli.app = lambda words, **_: print(words[0]); cli.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, "赤い玉".encode()], cwd=here, env=environment | ASCII, capture_output=True
    )
    assert done.stdout == b"\\u8d64\\u3044\\u7389\n", done.stderr


@pytest.mark.parametrize("name", ["x" * 252 + ".mp4", "é" * 130 + ".mp4"])
def test_a_name_that_is_too_long_is_one_line(small_checkpoint, here, capsys, name):
    assert "255 are possible" in error_of(capsys, "x", "--model", small_checkpoint, "--out", name)


def test_a_tilde_behind_an_equals_sign_is_the_home_directory(here, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert f"output {here}/x.avi must end" in error_of(capsys, "x", "--out=~/x.avi")
    assert list(here.iterdir()) == []


def test_an_unquoted_prompt_is_told_to_be_quoted(here, capsys):
    assert 'one argument: quote it, such as "a red ball"' in error_of(capsys, "a", "red", "ball")


def test_a_missing_prompt_is_one_line(here, capsys):
    assert "a prompt is missing" in error_of(capsys)
    assert "a prompt is missing" in error_of(capsys, "--width", "64")


def test_the_words_of_tiny(here, capsys):
    assert main(["generate", "--help-words", "--model", "tiny"]) == 0
    words = capsys.readouterr().out.split()
    assert {"red", "ball", "rolls", "leftwards"} <= set(words)
    assert words == sorted(words)


def test_a_model_that_reads_any_text_has_no_list(small_checkpoint, here, capsys):
    assert main(["generate", "--model", str(small_checkpoint), "--help-words"]) == 0
    assert "reads any text" in capsys.readouterr().out


@pytest.mark.parametrize("home", [{}, {"HOME": ""}], ids=["none", "empty"])
def test_ttnn_is_imported_without_a_home_directory(environment, home):
    kept = {name: environment[name] for name in ("PATH", "PYTHONPATH")}
    code = "from models.machine.host import quiet_ttnn; quiet_ttnn()"
    done = subprocess.run([sys.executable, "-c", code], env=kept | home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), "a segmentation fault in ttnn"


def test_a_user_without_any_home_directory_is_one_line(here, capsys, monkeypatch):
    from models.machine import host

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(host.pwd, "getpwuid", unknown)
    assert "HOME is not set, and user" in error_of(capsys, "x")


def test_threads_wait_passively_in_python_too(environment):
    shown = "print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    code = "import os, sys; {}from mochi_tt import open_mesh; " + shown
    kept = {name: value for name, value in environment.items() if name != "OMP_WAIT_POLICY"}

    def printed(before, **variables):
        command = [sys.executable, "-c", code.format(before)]
        done = subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert printed("") == ["passive", "False"]
    assert printed("", OMP_WAIT_POLICY="active") == ["active", "False"]
    assert printed("sys.modules['torch'] = None; ") == ["None", "True"], "it would be too late"


def test_help_is_fast_and_states_the_defaults(environment):
    code = (
        "import sys; from scripts.cli import main; code = main(['generate', '-h']); "
        "assert not {'torch', 'ttnn', 'diffusers', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for expected in ("--negative-prompt", "--threshold-noise", "[default: 848; tiny: 96]", "genmo/mochi-1-preview"):
        assert expected in text


def test_without_a_command_it_shows_the_help(capsys):
    assert main([]) == 0
    assert "generate" in capsys.readouterr().out


def test_the_list_of_commands_imports_none_of_them(environment):
    code = (
        "import sys; from scripts.cli import main; main(['--help']); "
        "print(sorted(n for n in sys.modules if n.startswith(('scripts.', 'models.mochi', 'torch', 'ttnn', 'numpy'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['scripts.cli', 'scripts.interrupts', 'scripts.streams']"
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_debug(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: mochi-tt " + name in out
    assert name == "cache" or "--debug" in out


def test_a_refused_number_costs_no_heavy_import(environment):
    code = (
        "import sys; from scripts.cli import main; code = main(['generate', 'x', '--width', '17']); "
        "assert not {'torch', 'ttnn', 'diffusers', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "mochi-tt: error: width 17 must be a positive multiple of 16: the nearest valid is 16 or 32\n"


def test_version(capsys):
    from mochi_tt import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mochi-tt {__version__}\n"


def test_doctor_describes_the_machine(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ttnn" in out
    assert "mode" in out


def test_lines_are_few_and_complete(capsys):
    with LineReporter() as reporter:
        for i in range(100):
            reporter.progress("denoise", i, 99)
        reporter.line("warning: x")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["denoise 0/99", "denoise 99/99", "warning: x"]


def test_bars_show_each_stage(capsys):
    with BarReporter() as reporter:
        reporter.progress("encode", 0, 2)
        reporter.progress("encode", 2, 2)
        reporter.progress("denoise", 1, 8)
        reporter.line("warning: [not markup]")
    out = capsys.readouterr().out
    assert "2/2" in out
    assert "1/8" in out
    assert "warning: [not markup]" in out


@pytest.mark.parametrize("command", [["dry-run"], ["measure", "--mode", "projection"]], ids=lambda words: words[0])
def test_a_way_that_does_not_exist_is_refused_by_every_command(capsys, command):
    assert main([*command, "--first-frames", "both"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "first_frames 'both' must be genmo" in lines[0]
