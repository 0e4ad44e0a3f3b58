"""Run the notebooks in a browser and use their widgets: ``python -m tests.browser --out DIR [--notebooks 01 09]``.

JupyterLab is started on a copy of the notebooks and of the study's results. Each notebook and each exercise is opened,
all of its cells are run, each of its widgets is moved once, and pictures of the whole notebook go into DIR. Notebook
04 trains a variant of one epoch. Each check prints one line; the exit status is 1 if a cell or a check fails. Needed
are the finished demo study, playwright and Chromium; the last two are not installed by the project.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from mammo_utils.io import project_root

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE, HIGH, TALL = 1280, 900, 2500  # pixels of the page; TALL for pictures of a notebook
DEMO = "results/demo"
NO_SETTINGS, QUICK = "settings: list[str] = []", "settings: list[str] = ['training.epochs=1']"
QUIET = {  # no question about news, and every cell of a notebook in the page
    "config/labconfig/page_config.json": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
}
OUTPUTS = """() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(
    (cell, i) => (cell.outputs ?? []).map((output) => ({ cell: i, ...output })))"""
SCROLL = """(page) => { const outer = document.querySelector(".jp-NotebookPanel .jp-WindowedPanel-outer");
    outer.scrollTop = page * outer.clientHeight; const last = [...outer.querySelectorAll(".jp-Cell")].at(-1);
    const end = last.getBoundingClientRect().bottom - outer.getBoundingClientRect().top + outer.scrollTop;
    return end / outer.clientHeight; }"""
WIDGETS = ".jp-Cell :is(.jupyter-widgets, .widget-box) :is(select, button, input[type=checkbox], .noUi-handle)"
CONTENT = """(node) => { const cell = node.closest(".jp-Cell"), pictures = [...cell.querySelectorAll("img")];
    return pictures.length ? pictures.map((picture) => picture.src).join() : cell.innerText; }"""
WIDE_OUTPUTS = """() => [...document.querySelectorAll(".jp-Notebook .jp-Cell")].flatMap((cell, i) =>
    [...cell.querySelectorAll(".jp-OutputArea-output")].filter((output) => output.scrollWidth > output.clientWidth + 1)
        .map((output) => `cell ${i} by ${output.scrollWidth - output.clientWidth} px`))"""
DONE = """() => { const panel = jupyterapp.shell.currentWidget;
    return panel.sessionContext.session?.kernel?.status === "idle" && !panel.node.querySelector(".jp-mod-pending") &&
        ![...panel.node.querySelectorAll(".jp-InputPrompt")].some((p) => p.textContent.includes("[*]")); }"""
PICTURE = "() => document.querySelector('.mammo-room canvas.views').toDataURL()"
NUMBERS = "() => document.querySelector('.mammo-room .panel').innerText"
TOGGLE = """async (view) => { const panel = document.querySelector('.mammo-room .panel'), before = panel.innerText;
    const start = performance.now();
    document.querySelector(`.mammo-room [data-view=${view}]`).click();
    do await new Promise(requestAnimationFrame); while (panel.innerText === before && performance.now() - start < 5000);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return panel.innerText === before ? Infinity : performance.now() - start; }"""
SLEEP = """() => { jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute(
    { code: "import time; time.sleep(3)" }); }"""
SPILLED = """() => [...document.querySelectorAll('.mammo-room *:not(.list)')].filter((node) => node.clientWidth &&
    node.scrollWidth > node.clientWidth + 1).map((node) => node.className || node.tagName)"""


class Checks:
    """Prints one line per check and counts those that fail."""

    def __init__(self) -> None:
        self.failed = 0

    def note(self, name: str, good: bool, more: object = "") -> None:
        self.failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {name} {more}".rstrip(), flush=True)


def copy_project(folder: Path) -> None:
    """Copy what the notebooks read and may write; the data folder is linked."""
    root = project_root()
    for name in ("config", "notebooks", DEMO):
        shutil.copytree(root / name, folder / "project" / name)
    training = folder / "project" / "notebooks" / "04_train.ipynb"  # else it finds the finished run
    text = training.read_text("utf-8")
    assert text.count(NO_SETTINGS) == 1
    training.write_text(text.replace(NO_SETTINGS, QUICK), "utf-8")
    (folder / "project" / "data").symlink_to(root / "data")
    for name, values in QUIET.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(values))


@contextlib.contextmanager
def jupyterlab(folder: Path):
    """Start JupyterLab in the folder, yield its address, and end it with its kernels."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    project, root = folder / "project", project_root()
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "MAMMO_PROJECT": "project"}
    environment = os.environ | {name: str(folder / place) for name, place in places.items()}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(root)}
    environment.pop("MPLBACKEND", None)  # the notebooks draw inline
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={project}", "--IdentityProvider.token="]
    options += ["--ServerApp.ip=127.0.0.1", "--LabApp.expose_app_in_browser=True", "--no-browser", "--allow-root"]
    with (folder / "jupyter.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api", timeout=5)
                    break
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(timeout=60)


def run_all(page, address: str, path: str, checks: Checks) -> None:
    """Open a notebook, run all of its cells and report errors and warnings."""
    name = Path(path).stem
    page.goto(f"{address}/lab/tree/{path}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    page.wait_for_function("() => jupyterapp.shell.currentWidget.sessionContext?.session?.kernel", timeout=120_000)
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    start = time.monotonic()
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_timeout(1000)
    page.wait_for_function(DONE, timeout=600_000)
    outputs = page.evaluate(OUTPUTS)
    errors = [f"cell {o['cell']}: {o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
    checks.note(f"{name}: all cells", not errors, "; ".join(errors) or f"in {time.monotonic() - start:.0f} s")
    warnings = [f"cell {o['cell']}: {''.join(o['text'])[:200]}" for o in outputs if o.get("name") == "stderr"]
    checks.note(f"{name}: no warnings", not warnings, "; ".join(warnings))
    if wide := page.evaluate(WIDE_OUTPUTS):
        print(f"       to be scrolled at {WIDE} px: {', '.join(wide)}", flush=True)


def use_widgets(page, name: str, checks: Checks) -> None:
    """Move each widget of ipywidgets once; the picture in its cell, or else its text, is to change."""
    for widget in page.locator(WIDGETS).locator("visible=true").all():
        if widget.evaluate("(node) => node.closest('.mammo-room')"):
            continue  # `use_room` does more
        widget.scroll_into_view_if_needed()
        kind, before = widget.evaluate("(node) => node.localName"), widget.evaluate(CONTENT)
        start = time.monotonic()
        if kind == "select":
            widget.select_option(index=widget.evaluate("(node) => (node.selectedIndex + 1) % node.length"))
        elif kind == "div":  # the handle of a slider
            widget.press("ArrowRight")
        else:
            widget.click()
        changed = False
        while not changed and time.monotonic() - start < 30:
            changed = widget.evaluate(CONTENT) != before
        checks.note(f"{name}: {kind} moved", changed, f"changes the cell in {1000 * (time.monotonic() - start):.0f} ms")


def shoot_all(page, folder: Path, name: str) -> None:
    """Take pictures of the whole notebook, from top to bottom."""
    page.set_viewport_size({"width": WIDE, "height": TALL})
    page.wait_for_timeout(1500)
    for number in range(math.ceil(page.evaluate(SCROLL, 0))):
        page.evaluate(SCROLL, number)
        page.wait_for_timeout(500)
        page.screenshot(path=folder / f"{name}-{number + 1}.png")
    page.set_viewport_size({"width": WIDE, "height": HIGH})
    page.wait_for_timeout(500)


def use_room(page, out: Path, checks: Checks) -> None:
    """Use everything in the reading room of notebook 09."""
    room = page.locator(".mammo-room")
    room.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    answered = "() => !document.querySelector('.mammo-room').classList.contains('waiting')"

    def shoot(name: str) -> None:
        room.screenshot(path=out / f"09-{name}.png")

    def changes(name: str, act, what: str = PICTURE, wanted: bool = True) -> None:
        before = page.evaluate(what)
        act()
        page.wait_for_timeout(150)
        page.wait_for_function(answered, timeout=10_000)
        page.wait_for_timeout(150)
        changed = page.evaluate(what) != before
        checks.note(f"09: {name}", changed == wanted, "" if wanted else "(nothing changes)")

    shoot("1-opened")
    box = room.locator("canvas.views").bounding_box()
    x, y = box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"]

    def drag(dx: int, dy: int, button: str = "left") -> None:
        page.mouse.move(x, y)
        page.mouse.down(button=button)
        page.mouse.move(x + dx, y + dy, steps=4)
        page.mouse.up(button=button)

    def wheel() -> None:
        page.mouse.move(x, y)
        page.mouse.wheel(0, -500)

    changes("the wheel before the room has the focus", wheel, wanted=False)
    room.scroll_into_view_if_needed()
    box = room.locator("canvas.views").bounding_box()
    x, y = box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"]
    start = page.evaluate(PICTURE)
    page.mouse.click(x, y)
    changes("wheel zooms", wheel)
    changes("drag pans", lambda: drag(40, 30))
    shoot("2-zoomed")
    changes("right drag sets the window", lambda: drag(-60, -20, "right"))
    page.mouse.dblclick(x, y)
    page.wait_for_timeout(300)
    checks.note("09: double click resets", page.evaluate(PICTURE) == start)
    for key, what in (("o", "outlines"), ("h", "heat map"), ("c", "contributions"), ("i", "invert")):
        enabled = room.get_by_role("button", name=what).is_enabled()
        changes(f"key {key}: {what}", lambda key=key: page.keyboard.press(key), wanted=enabled)
        shoot(f"3-key-{key}")
        page.keyboard.press(key)
    changes("key 2 hides a view: picture", lambda: page.keyboard.press("2"))
    shoot("4-hidden")
    changes("key 2 shows it again: numbers", lambda: page.keyboard.press("2"), NUMBERS)
    kinds = page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.map((c) => c.cell_type)")
    stored = json.loads((project_root() / "notebooks" / "09_reading_room.ipynb").read_text("utf-8"))["cells"]
    checks.note("09: no key reaches the notebook", kinds == [cell["cell_type"] for cell in stored])
    times = [page.evaluate(TOGGLE, view) for view in ("R_CC", "L_CC", "R_MLO", "L_MLO") for _ in range(6)]
    more = f"median {statistics.median(times):.0f} ms, the longest {sorted(map(round, times))[-3:]} of {len(times)}"
    checks.note("09: a view is shown or hidden in less than 200 ms", statistics.median(times) < 200, more)
    changes("arrow key: another exam", lambda: page.keyboard.press("ArrowRight"), NUMBERS)
    begun = time.monotonic()
    changes("click: another exam", lambda: room.locator("[data-exam]").nth(4).click(), NUMBERS)
    print(f"       with both pauses of 150 ms in {1000 * (time.monotonic() - begun):.0f} ms")
    changes("the keys work after a click", lambda: page.keyboard.press("ArrowRight"), NUMBERS)
    room.locator("[data-filter=order]").select_option("heat maps first")
    page.wait_for_function(answered)
    room.locator("[data-exam]").first.click()
    page.wait_for_function(answered)
    for method in ("grad_cam", "integrated_gradients", "occlusion"):
        changes(f"heat map: {method}", lambda method=method: room.get_by_label("method").select_option(method))
        shoot(f"5-{method}")
    room.locator("[data-exam]").filter(has_not_text="heat map").first.click()
    page.wait_for_function(answered)
    checks.note("09: an exam without heat maps states it", room.get_by_role("button", name="no heat map").is_visible())
    shoot("5-none")
    page.evaluate(SLEEP)  # JupyterLab may still reach the widget, in a subshell of the kernel
    wanted = room.locator("[data-exam]").nth(1).get_attribute("data-exam")
    room.locator("[data-exam]").nth(1).click()
    page.wait_for_timeout(500)
    dim, shown = not page.evaluate(answered), room.locator("h3").inner_text()
    more = "the numbers are dim" if dim else "the kernel answers"
    checks.note("09: with a busy kernel no exam has another's numbers", dim or shown.startswith(wanted), f"({more})")
    page.wait_for_function(answered, timeout=15_000)
    checks.note("09: then the exam is shown", room.locator("h3").inner_text().startswith(wanted))
    room.locator("[data-filter=views]").select_option("2")
    page.wait_for_function(answered)
    changes("filter: an exam of two views", lambda: room.locator("[data-exam]").first.click(), NUMBERS)
    checks.note("09: no probability without an image", "no image: no prediction" in page.evaluate(NUMBERS))
    shoot("6-two-views")
    with page.expect_download() as download:
        room.get_by_role("button", name="save PNG").click()
    download.value.save_as(out / "09-saved.png")
    checks.note("09: the view is saved", (out / "09-saved.png").stat().st_size > 20_000)
    spilled = page.evaluate(SPILLED)
    checks.note(f"09: nothing is cut off at {WIDE} px", not spilled, sorted(set(spilled)) or "")
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    page.wait_for_timeout(700)
    shoot("6-narrow")
    spilled = page.evaluate(SPILLED)
    checks.note("09: nor beside the file browser", not spilled, sorted(set(spilled)) or "")
    page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.shutdown()")
    page.wait_for_timeout(1000)
    room.locator("[data-exam]").nth(2).click()
    page.wait_for_timeout(3000)
    words = room.locator(".status").inner_text()
    checks.note("09: without a kernel the numbers are dim", "has not answered" in words, words)
    shoot("7-no-kernel")
    before = page.evaluate(PICTURE)
    room.locator("[data-view]:enabled").first.click()
    page.wait_for_timeout(300)
    checks.note("09: without a kernel, views are still hidden and shown", page.evaluate(PICTURE) != before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", nargs="+", help="numbers, of the exercises 1 to 3; all if left out")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("The browser checks need playwright; run `pip install playwright`.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        sys.exit(f"The browser checks need Chromium; install one of {', '.join(BROWSERS)}.")
    if not (project_root() / DEMO / "runs").is_dir():
        sys.exit(f"The browser checks need the finished demo in {DEMO}; run `snakemake` first.")
    options.out.mkdir(parents=True, exist_ok=True)
    root = project_root()
    paths = [file.relative_to(root).as_posix() for file in sorted((root / "notebooks").glob("**/[0-9]*.ipynb"))]
    chosen = [path for path in paths if not options.notebooks or Path(path).stem.split("_")[0] in options.notebooks]
    chosen.sort(key=lambda path: "04_train" in path)  # last, so that no other notebook shows its variant
    checks = Checks()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        copy_project(Path(temporary))
        chrome = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        with jupyterlab(Path(temporary)) as address:
            for path in chosen:
                name = Path(path).stem
                page = chrome.new_page(viewport={"width": WIDE, "height": HIGH})
                page.set_default_timeout(30_000)
                wrong: list[str] = []
                page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error).splitlines()[0]))
                try:
                    run_all(page, address, path, checks)
                    use_widgets(page, name, checks)
                    shoot_all(page, options.out, name)
                    if name.startswith("09"):
                        use_room(page, options.out, checks)
                except Exception as error:  # the next notebook is still checked
                    page.screenshot(path=options.out / f"{name}-error.png")
                    checks.note(name, False, str(error).splitlines()[0])
                checks.note(f"{name}: the page", not wrong, "; ".join(wrong))
                page.close()
        chrome.close()
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
