"""A launch of the Open OnDemand app on the test cluster, for the tests that look at it from outside."""

import yaml
from portal import job_script, render, sbatch_options, site
from testbed import NODES, until

from helpers import connections

PORTAL = "https://ondemand.example.edu"
HOSTS = {f"node{number + 1}": f"10.77.0.1{number + 1}" for number in range(NODES)}
LESSON = "notebooks/00_start_here.ipynb"


class Session:
    """A launch of the app: what the dashboard submits, the job's card, and a browser at it."""

    def __init__(self, cluster, course, place, name, **settings):
        given = {"folder": str(course), "participant_folder": "$HOME/work", "portal": PORTAL} | settings
        self.app = site(place / f"app-{name}", **given)
        self.staged, self.home = place / name, place / "home"
        self.home.mkdir(exist_ok=True)
        submit = render(self.app, self.staged, "course")["submit"]
        script = self.staged / "job_script_content.sh"
        script.write_text(job_script(submit, self.staged))
        given = {"HOME": str(self.home), "WORKSHOP_HOME": str(connections.home())}
        options = ["--parsable", f"--export={','.join(given)}", *sbatch_options(submit, self.staged)]
        self.job = cluster.known(cluster.run("sbatch", *options, script, **given).stdout.strip())

    def messages(self):
        path = self.staged / "messages"
        return path.read_text() if path.exists() else ""

    def log(self):
        return (self.staged / "output.log").read_text()

    def connected(self):
        """Wait for the card's button; host, port and password behind it."""

        def look():
            assert not self.job.over(), self.log()
            path = self.staged / "connection.yml"
            return path.exists() and yaml.safe_load(path.read_text())

        return until(lambda: f"JupyterLab: {self.log()}", 60, look, every=0.05)
