"""The Open OnDemand app in a browser: from the card's button to a lesson that runs, and its panel from pending to ready."""

import re
import shutil

import pytest
from labpage import SIZE, LabPage, code_cells, text_of
from playwright.sync_api import expect
from portal import Proxy, render
from session import HOSTS, Session

#: Keeps every phase that the panel shows in bold, also those that pass quickly.
WATCH = """panel => {
    window.phases = [];
    const look = () => { const b = panel.querySelector('[role=status] b'); b && window.phases.push(b.innerText); };
    new MutationObserver(look).observe(panel, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture
def lab(browser, cluster, course, reference, tmp_path):
    """JupyterLab of a session, reached as people reach it: a click on the card of the portal's page."""
    with Proxy(HOSTS) as portal:
        session = Session(cluster, course, tmp_path, "session", portal=portal.origin)
        session.connected()
        card = card_of(session, tmp_path / "card")
        assert "JupyterLab is ready on node" in card["info"]
        context = browser.new_context(viewport=SIZE)
        page = context.new_page()
        page.route("**/sessions", lambda route: route.fulfill(content_type="text/html", body=card["view"]))
        page.goto(f"{portal.origin}/sessions")
        with context.expect_page() as opened:
            page.get_by_role("button", name="Open JupyterLab at the first lesson").click()
        yield LabPage(opened.value, session.home / "work").ready()
        context.close()


def card_of(session, folder):
    """What the dashboard shows of a session that runs."""
    folder.mkdir()
    for name in ("connection.yml", "messages"):
        shutil.copyfile(session.staged / name, folder / name)
    return render(session.app, folder, "course")["card"]


def test_from_the_card_to_a_server_that_was_submitted_in_the_lesson(lab, cluster, reference):
    assert lab.notebook.name == "00_start_here.ipynb"
    assert lab.page.locator(".jp-OutputArea-output").count() == 0, "learners predict first"
    lab.picture("ondemand_lesson_00")
    assert not lab.page.locator(".jp-Notification-Toast-Close").count(), "a question that is none of ours"
    assert reference.connection().base_url in text_of(code_cells(lab.run_all()))

    cell = lab.cell("SlurmPanel()")
    panel = cell.locator(".jupyter-widgets.widget-vbox").first
    told = panel.get_by_role("status")
    phase = told.locator("b")
    expect(phase).to_have_text("ready")  # it follows the server that runs already
    panel.evaluate(WATCH)
    panel.get_by_role("button", name="Submit").click()
    expect(phase).to_have_text("pending")
    lab.picture("panel_pending", show=cell)
    job = cluster.known(re.search(r"[Jj]ob (\d+)", told.inner_text())[1])
    assert job.id != reference.id
    expect(phase).to_have_text("ready", timeout=120_000)
    seen = list(dict.fromkeys(lab.page.evaluate("window.phases.slice(1)")))
    assert seen[0] == "pending" and seen[-1] == "ready" and "starting" in seen
    assert "checks passed" in panel.inner_text()
    lab.picture("panel_ready", show=cell)
    panel.get_by_role("button", name="Show log").click()
    expect(panel.locator("pre")).to_contain_text("Application startup complete")
    panel.get_by_role("button", name="Cancel").click()
    expect(told).to_contain_text("was cancelled")
    job.ended()
