"""One test per message of `validate`: what is wrong, where, and the way out."""

from __future__ import annotations

import pytest

from backendops.contracts.errors import PolicyError
from backendops.policy.load import load_policy

# § stands before the place that the problem must name.
HEAD = """\
version: 1
backends:
  cache: {url: redis://localhost}
  results: {url: db+postgresql://u@localhost/d}
jobs:
"""
TAIL = """\
backends:
  cache: {url: redis://localhost}
jobs:
  pool-health:
"""

YAML = {
    "empty": ("§", "the policy is empty"),
    "only a comment": ("§# nothing\n", "the policy is empty"),
    "a list": ("§- a\n", "a policy is a mapping with version, backends and jobs, not a list"),
    "text": ("§hello\n", "a policy is a mapping with version, backends and jobs, not this text"),
    "two documents": ("version: 1\n" + TAIL + "§---\na: 1\n", "a second document begins here"),
    "duplicate key": (
        HEAD + "  expire: {keep: 3d}\n  §expire: {keep: 4d}\n",
        "'expire' is given twice, first at line 6, column 3",
    ),
    "tab": ("version: 1\nbackends:\n§\tcache: {url: redis://h}\n", "a tab cannot indent YAML: use spaces"),
    "at sign": (
        HEAD + "  pool-health:\n    schedule: §@daily\n",
        "a value cannot start with @ in YAML: put the value in",
    ),
    "star": (
        HEAD + "  pool-health:\n    schedule: *§/5 * * * *\n",
        "a value that starts with * is a reference in YAML",
    ),
    "alias": (HEAD + "  pool-health:\n    schedule: §*daily\n", "a value that starts with * refers to an anchor"),
    "anchor": (HEAD + "  pool-health: §&anchor {schedule: every 1m}\n", "& makes an anchor, which backendops does not"),
    "tag": (HEAD + "  pool-health:\n    schedule: §!when every 1m\n", "! makes a tag, which backendops does not use"),
    "merge key": (HEAD + "  pool-health: {§<<: {schedule: every 1m}}\n", "<< merges mappings"),
    "two colons": (HEAD + "  pool-health:\n    schedule: every§: 5m\n", "a second ': ' is not allowed here"),
    "no colon": (HEAD + "  pool-health: {}\n  §vacuum\n", "this line has no ': ' after its key"),
    "after a quote": (HEAD + "  pool-health:\n    schedule: 'every' §1m\n", "a value ends and another begins"),
    "block": (HEAD + "  pool-health:\n    schedule: |§every 1m\n", "a value that starts with | or > begins a block"),
    "directive": (HEAD + "%TAG§\n", "this is not YAML"),
    "bad indentation": (
        HEAD + "  pool-health:\n    schedule: every 1m\n   §backend: cache\n",
        "the indentation does not fit",
    ),
    "unclosed quote": (HEAD + '  pool-health:\n    schedule: §"every 1m\n', "a quote that was opened is never closed"),
    "unclosed bracket": (HEAD + "  pool-health: {backend: [cache§}\n", "a bracket is not closed"),
    "variable in braces": (
        HEAD.replace("redis://localhost", "$§{X}/0", 1),
        "a value such as ${VAR} inside brackets needs",
    ),
    "escape": (HEAD + '  pool-health: {schedule: "\\§d"}\n', "a backslash in double quotes begins an escape"),
    "list where none can be": (HEAD + "  pool-health: §- a\n", "a list cannot begin here"),
    "zero byte escaped": (HEAD + '  pool-health: {schedule: §"\\0"}\n', "an escape here makes a zero byte"),
    "control character": (HEAD + "  pool-health: {schedule: §\x01}\n", "an invisible control character stands here"),
    "key is a list": ("version: 1\n§[a, b]: 1\n" + TAIL, "a key must be a word, not a list or a mapping"),
    "key is a number": ("version: 1\n§5: 1\n" + TAIL, "this key is a number, a boolean or nothing to YAML"),
    "nested too deeply": (
        "version: 1\na: " + "[" * 40 + "§[" + "]" * 41 + "\n",
        "this is nested too deeply to be a policy",
    ),
    "yes": (HEAD + "  pool-health: {schedule: §yes}\n", "yes is true to some YAML readers and a word to others"),
    "Off": (HEAD + "  pool-health: {backend: §Off}\n", "Off is false to some YAML readers and a word to others"),
    "base 60": (HEAD + "  expire: {keep: §1:30}\n", "1:30 is a base-60 number to some YAML readers"),
    "octal": (HEAD + "  pool-health: {batch_size: §010}\n", "010 is octal to some YAML readers"),
    "underscores": (
        HEAD + "  pool-health: {batch_size: §1_000}\n",
        "1_000 is a number to some YAML readers and text to",
    ),
    "date": (HEAD + "  expire: {keep: §2026-01-31}\n", "2026-01-31 is a date to some YAML readers and text to others"),
    "nan": (HEAD + "  pool-health: {connections_warning: §.nan}\n", ".nan is no number to work with"),
    "huge float": (HEAD + "  pool-health: {connections_warning: §1e400}\n", "1e400 is no number to work with"),
    "huge": (HEAD + "  pool-health: {batch_size: §99999999999999999999}\n", "is too large a number"),
    "a trap in a secret": ("version: 1\nhttp: {username: a, password: §0777}\n" + TAIL, "this value is octal"),
}

TOP = {
    "version missing": ("§" + TAIL, "the policy needs the key 'version': write `version: 1` at its top"),
    "version 2": ("version: §2\n" + TAIL, "version 2 is not one this backendops reads: write 1"),
    "version true": ("version: §true\n" + TAIL, "version true is not one this backendops reads"),
    "unknown key": ("version: 1\n§job: {}\n" + TAIL, "unknown key 'job', did you mean 'jobs'?"),
    "timezone": ("version: 1\ntimezone: §europe/berlin\n" + TAIL, "is not a time zone, did you mean 'Europe/Berlin'?"),
    "timezone far off": ("version: 1\ntimezone: §Mars\n" + TAIL, "'Mars' is not a time zone"),
    "timezone a number": ("version: 1\ntimezone: §5\n" + TAIL, "5 is not a time zone: write one such as UTC"),
    "timezone a path": ("version: 1\ntimezone: §../../etc/passwd\n" + TAIL, "is not a time zone"),
    "state a number": ("version: 1\nstate: §5\n" + TAIL, "state must be a directory or a SQLAlchemy URL, not 5"),
    "state a file": ("version: 1\nstate: §/etc/passwd\n" + TAIL, "'/etc/passwd' is a file"),
    "state empty": ("version: 1\nstate: §''\n" + TAIL, "state is empty"),
    "state behind redis": ("version: 1\nstate: §redis://h/0\n" + TAIL, "state cannot be kept behind redis://"),
    "state without driver": (
        "version: 1\nstate: §oracle://h/d\n" + TAIL,
        "the driver of state is not installed: install",
    ),
    "state port": (
        "version: 1\nstate: §postgresql://u:pw123@h:x/d\n" + TAIL,
        "state is not a URL that SQLAlchemy can read",
    ),
    "no backends": ("§version: 1\njobs:\n  pool-health:\n", "the policy has no backends"),
    "backends empty": ("version: 1\nbackends: §{}\njobs:\n  pool-health:\n", "the policy has no backends"),
    "backends a list": ("version: 1\nbackends: §[a]\njobs: {pool-health: }\n", "backends must be a mapping of names"),
    "no jobs": (
        "version: 1\nbackends: {c: {url: redis://h}}\njobs:§\n",
        "the policy has no jobs: there is expire, archive",
    ),
    "http a list": ("version: 1\nhttp: §[]\n" + TAIL, "http must be a mapping of keys, not a list"),
    "listen a port": (
        "version: 1\nhttp: {listen: §9919}\n" + TAIL,
        "9919 is not an address and a port: write 127.0.0.1",
    ),
    "listen no host": ("version: 1\nhttp: {listen: §':9919'}\n" + TAIL, "is not an address and a port"),
    "listen no port": ("version: 1\nhttp: {listen: §localhost}\n" + TAIL, "is not an address and a port"),
    "listen a URL": ("version: 1\nhttp: {listen: §'http://h:9919'}\n" + TAIL, "is not an address and a port"),
    "listen too high": (
        "version: 1\nhttp: {listen: §'h:99999'}\n" + TAIL,
        "there is no port 99999: ports go up to 65535",
    ),
    "tls alone": ("version: 1\nhttp: §{tls_key: /etc/passwd}\n" + TAIL, "tls_certificate and tls_key belong together"),
    "tls missing": (
        "version: 1\nhttp: {tls_key: /etc/passwd, tls_certificate: §/nowhere.pem}\n" + TAIL,
        "there is no file '/nowhere.pem'",
    ),
    "user alone": ("version: 1\nhttp: §{username: a}\n" + TAIL, "username and password belong together"),
    "variable": (
        "version: 1\nstate: §${NOT_SET}\n" + TAIL,
        "the environment variable NOT_SET is not set: set it, or write",
    ),
    "variable unclosed": ("version: 1\nstate: §${NOT_SET\n" + TAIL, "${ is never closed"),
    "variable of a shell": ("version: 1\nstate: §'${A:?no}'\n" + TAIL, "is not a form backendops knows: write ${NAME}"),
    "file missing": ("version: 1\nstate: §${file:/nowhere/x}\n" + TAIL, "cannot be read: No such file or directory"),
    "file nested": ("version: 1\nstate: §${file:${NOT_SET}/x}\n" + TAIL, "the environment variable NOT_SET is not set"),
    "file a directory": ("version: 1\nstate: §${file:/etc}\n" + TAIL, "/etc is not a file"),
    "file unnamed": ("version: 1\nstate: §'${file:}'\n" + TAIL, "${file:} names no file"),
}


def backends(text: str) -> str:
    return f"version: 1\nbackends:\n{text}jobs:\n  pool-health:\n"


BACKENDS = {
    "name": (backends("  §a b: {url: redis://h}\n"), "'a b' is no name: use up to 63 letters, digits"),
    "no settings": (backends("  a:§\n"), "backend 'a' needs the key 'url': any Celery result_backend URL"),
    "text": (backends("  a: §redis://h\n"), "backend 'a' must be a mapping of keys, not 'redis://h'"),
    "no url": (backends("  a: §{result_expires: 3d}\n"), "backend 'a' needs the key 'url'"),
    "url a number": (backends("  a: {url: §5}\n"), "'url' must be text: put it in quotes (it is a number)"),
    "url empty": (backends("  a: {url: §''}\n"), "its url is empty"),
    "url without scheme": (
        backends("  a: {url: §localhost}\n"),
        "its url has no scheme: it begins with one of db+postgresql",
    ),
    "variable without braces": (backends("  a: {url: §$RESULTS}\n"), "a variable in a url is written with braces"),
    "space": (backends("  a: {url: §' redis://h'}\n"), "its url begins or ends with a space"),
    "scheme misspelt": (backends("  a: {url: §reddis://h}\n"), "unknown scheme 'reddis', did you mean 'redis'?"),
    "scheme unknown": (backends("  a: {url: §ftp://h}\n"), "unknown scheme 'ftp': there is db+postgresql://"),
    "Celery's other": (
        backends("  a: {url: §cassandra://h}\n"),
        "backendops does not support Celery's 'cassandra' yet",
    ),
    "bad port": (backends("  a: {url: §db+postgresql://u:pw123@h:x/d}\n"), "this URL cannot be read: check its port"),
    "port too high": (backends("  a: {url: §db+postgresql://h:99999/d}\n"), "the port is not a number from 1 to 65535"),
    "at sign in password": (backends("  a: {url: §db+postgresql://u:p@ss@h/d}\n"), "this URL has two @"),
    "unknown key": (
        backends("  a: {url: redis://h, §result_expire: 3d}\n"),
        "'result_expire' in backend 'a', did you mean",
    ),
    "nested unknown": (
        backends("  a: {url: db+postgresql://h/d, tables: {§tasks: x}}\n"),
        "unknown key 'tasks' in tables of backend 'a', did you mean 'task'?",
    ),
    "nested type": (backends("  a: {url: db+postgresql://h/d, tables: §[x]}\n"), "'tables' must be a mapping, such as"),
    "name too long": (
        backends(f"  a: {{url: db+postgresql://h/d, tables: {{task: §{'x' * 64}}}}}\n"),
        "must be at most 63 characters long",
    ),
    "expires": (
        backends("  a: {url: redis://h, result_expires: §30}\n"),
        "'result_expires': 30 is not a duration: write a",
    ),
    "zone": (backends("  a: {url: db+postgresql://h/d, date_done_timezone: §Mars}\n"), "'Mars' is not a time zone"),
}

JOBS = {
    "unknown": (HEAD + "  §archve: {older_than: 3d}\n", "unknown job 'archve', did you mean 'archive'?"),
    "unknown and far": (HEAD + "  §nightly: {}\n", "unknown job 'nightly': there is expire, archive, partition"),
    "kind": (HEAD + "  nightly: {kind: §vacum}\n", "job 'nightly': unknown kind 'vacum', did you mean 'vacuum'?"),
    "kind a number": (HEAD + "  nightly: {kind: §5}\n", "job 'nightly': unknown kind 5: there is expire"),
    "text": (HEAD + "  expire: §30d\n", "job 'expire' must be a mapping of keys, not '30d'"),
    "unknown key": (
        HEAD + "  archive: {§older_then: 3d}\n",
        "unknown key 'older_then' in job 'archive', did you mean 'older_",
    ),
    "missing key": (HEAD + "  expire: §{}\n", "job 'expire' needs the key 'keep': How long a finished result stays"),
    "key without value": (HEAD + "  expire: {keep:§}\n", "'keep' of job 'expire' has no value"),
    "keep 0": (HEAD + "  expire: {keep: §0}\n", "'keep': 0 is ambiguous: write a duration such as 30d, or forever"),
    "keep without unit": (HEAD + "  expire: {keep: §30}\n", "'keep': 30 is not a duration: write a number and a unit"),
    "keep a list": (HEAD + "  expire: {keep: §[30d]}\n", "is not a duration"),
    "unit": (HEAD + "  expire: {keep: §3 lightyears}\n", "unknown unit 'lightyears'"),
    "months in a timeout": (
        HEAD + "  vacuum: {time_budget: §1 month}\n",
        "has no fixed length: use days or weeks here",
    ),
    "no time": (HEAD + "  vacuum: {time_budget: §0s}\n", "'time_budget': '0s' is no time at all"),
    "too long": (HEAD + "  expire: {keep: §200 years}\n", "is over a hundred years: say forever"),
    "below": (HEAD + "  vacuum: {batch_size: §0}\n", "'batch_size' must be at least 1, not 0"),
    "above": (HEAD + "  pool-health: {connections_warning: §2}\n", "'connections_warning' must be at most 1, not 2"),
    "word for number": (HEAD + "  vacuum: {batch_size: §many}\n", "'batch_size' must be a whole number, not 'many'"),
    "part of a row": (HEAD + "  vacuum: {batch_size: §1.5}\n", "'batch_size' must be a whole number, not 1.5"),
    "true for number": (HEAD + "  vacuum: {batch_size: §true}\n", "'batch_size' must be a number, not true"),
    "word for ratio": (HEAD + "  vacuum: {dead_ratio: §half}\n", "'dead_ratio' must be a number, not 'half'"),
    "choice": (
        HEAD + "  partition: {every: §moth}\n",
        "'every' must be 'month', 'week' or 'day', not 'moth': did you mean 'm",
    ),
    "mapping for text": (
        HEAD + "  partition: {table: §{a: b}}\n",
        "'table' must be text: put it in quotes (it is a mapping)",
    ),
    "window": (
        HEAD + "  vacuum: {full: {start: §2, end: '04:00'}}\n",
        "'start' must be a time of day in quotes, such as",
    ),
    "window's text": (HEAD + "  vacuum: {full: {start: §'2am', end: '04:00'}}\n", "must be a time of day in quotes"),
    "window without end": (
        HEAD + "  vacuum: {full: §{start: '04:00'}}\n",
        "job 'vacuum' needs the key 'full.end': Last",
    ),
    "states a list": (
        HEAD + "  expire: {keep: 3d, keep_by_state: §[FAILURE]}\n",
        "'keep_by_state' must be a mapping, such",
    ),
    "state's keep": (
        HEAD + "  expire: {keep: 3d, keep_by_state: {FAILURE: §5}}\n",
        "'keep_by_state.FAILURE': 5 is not a",
    ),
    "state too long": (
        HEAD + f"  expire: {{keep: 3d, keep_by_state: {{§{'X' * 51}: 3d}}}}\n",
        "must be at most 50 characters long",
    ),
    "backend unknown": (
        HEAD + "  expire: {keep: 3d, backend: §cach}\n",
        "unknown backend 'cach', did you mean 'cache'?",
    ),
    "backend twice": (
        HEAD + "  expire: {keep: 3d, backend: [cache, §cache]}\n",
        "job 'expire' names backend 'cache' twice: remove one",
    ),
    "backend unable": (
        HEAD + "  archive: {older_than: 3d, backend: §cache}\n",
        "job 'archive' cannot run on 'cache': a redis backend has no archive to a table of its own; write "
        "`to: {backend: NAME}` or `to: {files: PATH}`",
    ),
    "backend a number": (HEAD + "  expire: {keep: 3d, backend: §5}\n", "'backend' must be text: put it in quotes"),
    "backend in a list": (HEAD + "  expire: {keep: 3d, backend: [cache, §5]}\n", "'backend.1' must be text: put it in"),
    "no backend named": (HEAD + "  expire: {keep: 3d, backend: §[]}\n", "the list of backends is empty"),
    "nowhere to run": (
        "version: 1\nbackends: {cache: {url: redis://h}}\njobs:\n  §vacuum:\n",
        "job 'vacuum' has nowhere to run: none of the backends can do it",
    ),
    "rule about nothing": (
        HEAD + "  expire: {keep: 3d, rules: [§{keep: 9d}]}\n",
        "'rules.0': a rule says which results it is about: task, queue or state",
    ),
    "rule's range backwards": (
        HEAD + "  expire: {keep: 3d, rules: [{task: §'report.[z-a]*', keep: 9d}]}\n",
        "'rules.0.task': [z-a] has no character from 'z' to 'a': write [a-z]",
    ),
    "rule's range that goes on": (
        HEAD + "  expire: {keep: 3d, rules: [{queue: §'[a-c-e]', keep: 9d}]}\n",
        "'rules.0.queue': [a-c-e] has a - just after a range: put it first in the set",
    ),
    "rule's slip": (
        HEAD + "  expire: {keep: 3d, rules: [{§taks: x, keep: 9d}]}\n",
        "unknown key 'taks' in rules.0 of job 'expire', did you mean 'task'?",
    ),
    "rule without a time": (
        HEAD + "  expire: {keep: 3d, rules: [§{task: x}]}\n",
        "job 'expire' needs the key 'rules.0.keep': How long these results stay",
    ),
    "rule's time": (
        HEAD + "  archive: {older_than: 3d, rules: [{task: x, older_than: §5}]}\n",
        "'rules.0.older_than': 5 is not a duration",
    ),
    "rule a word": (
        HEAD + "  expire: {keep: 3d, rules: [§x]}\n",
        "'rules.0' must be a mapping, such as {key: value}, not 'x'",
    ),
    "rules a mapping": (
        HEAD + "  expire: {keep: 3d, rules: §{task: x, keep: 9d}}\n",
        "'rules' must be a list",
    ),
    "none of the newest": (HEAD + "  expire: {keep: 3d, keep_newest: §0}\n", "'keep_newest' must be at least 1"),
    "stuck too early": (
        HEAD + "  archive: {older_than: 3d, stuck_after: §30m}\n",
        "after 30m a task is hardly stuck: write an hour at least, such as 3d",
    ),
    "schedule": (
        HEAD + "  vacuum: {schedule: §nightly}\n",
        "job 'vacuum': 'nightly' is not a schedule: write `every 15m`",
    ),
    "schedule a number": (HEAD + "  vacuum: {schedule: §5}\n", "'schedule' must be text: put it in quotes (it is 5)"),
    "interval 0": (HEAD + "  vacuum: {schedule: §every 0s}\n", "is no time at all"),
    "impossible": (HEAD + "  vacuum: {schedule: §0 0 31 2 *}\n", "'0 0 31 2 *' never fires"),
}

CHECKS = {
    "gone before archived": (
        HEAD + "  expire: {keep: §5d}\n  archive: {older_than: 7d}\n",
        "job 'expire' removes results from 'results' after 5d, before 'archive' archives them (1w): make it longer",
    ),
    "as long as": (HEAD + "  expire: {keep: §7d}\n  archive: {older_than: 7d}\n", "make it longer"),
    "a short month": (HEAD + "  expire: {keep: §1 month}\n  archive: {older_than: 29d}\n", "make it longer"),
    "gone by state": (
        HEAD + "  expire: {keep: 9d, keep_by_state: {SUCCESS: §1d}}\n  archive: {older_than: 7d}\n",
        "job 'expire' removes SUCCESS results from 'results' after 1d",
    ),
    "gone with its partition": (
        HEAD + "  partition: {keep_live: §5d}\n  archive: {older_than: 7d}\n",
        "job 'partition' retires live partitions of 'results' after 5d, before 'archive' archives them (1w)",
    ),
    "gone with its partition, kept for ever": (
        HEAD + "  expire: {keep: 7d, rules: [{task: 'audit.*', keep: forever}]}\n  partition: {keep_live: §30d}\n",
        "job 'partition' retires live partitions of 'results' after 30d, with results of task: audit.* that 'expire' "
        "keeps for ever: make it at least as long, or leave it out",
    ),
    "gone with its partition, kept by state": (
        HEAD + "  expire: {keep: 7d, keep_by_state: {FAILURE: 90d}}\n  partition: {keep_live: §30d}\n",
        "with FAILURE results that 'expire' keeps for 90d",
    ),
    "gone with its partition, kept": (
        HEAD + "  expire: {keep: 1 month}\n  partition: {keep_live: §30d}\n",
        "with results that 'expire' keeps for 1 month",
    ),
    "gone with its partition, the newest": (
        HEAD + "  expire: {keep: 7d, keep_newest: 1000, backend: results}\n  partition: {keep_live: §30d}\n",
        "with the 1,000 newest that 'expire' keeps (keep_newest) where these are older: leave one of them out",
    ),
    "gone with its partition, never archived": (
        HEAD
        + "  archive: {older_than: 7d, rules: [{queue: bulk, older_than: forever}]}\n  partition: {keep_live: §30d}\n",
        "with what 'archive' never archives ({queue: bulk}): leave keep_live out, or archive them before",
    ),
    "retired as soon as archived": (
        HEAD + "  archive: {older_than: 7d}\n  partition: {keep: §7d}\n",
        "job 'partition' retires partitions of the archive of 'results' after 1w, no later than 'archive' moves them "
        "there (1w): make it longer",
    ),
    "gone by Celery": (
        HEAD.replace("/d}", "/d, result_expires: §1d}") + "  archive: {older_than: 7d}\n",
        "Celery removes results from 'results' after 1d, before 'archive' archives them",
    ),
    "archives disagree": (
        HEAD + "  archive: {older_than: 7d}\n  partition: {every: §day}\n",
        "jobs 'archive' and 'partition' share 'results' but disagree about its archive: every is 'month' in one",
    ),
    "archive tables": (
        HEAD + "  archive: {older_than: 7d, table: 'old_{table}'}\n  partition: §{}\n",
        "table is 'old_{table}' in one and '{table}_archive'",
    ),
    "archive schemas": (
        HEAD + "  archive: {older_than: 7d}\n  partition: {schema: §old}\n",
        "schema is 'left out' in one and 'old' in the",
    ),
    "one archive for two tables": (
        HEAD + "  archive: {older_than: 7d, table: §old}\n",
        "'old' would be the one archive of celery_taskmeta and celery_tasksetmeta in 'results': write {table} in it",
    ),
    "one partitioned archive for two tables": (
        HEAD + "  partition: {table: §old}\n",
        "job 'partition': 'old' would be the one archive of celery_taskmeta and celery_tasksetmeta",
    ),
    "batch over statement": (
        HEAD + "  vacuum: {batch_time: §1m, statement_timeout: 30s}\n",
        "batch_time (1m) is longer than statement_timeout (30s)",
    ),
    "statement under batch": (
        HEAD + "  vacuum: {statement_timeout: §100ms}\n",
        "is longer than statement_timeout (100ms)",
    ),
    "warning over critical": (
        HEAD + "  redis-memory: §{memory_warning: 0.99}\n",
        "job 'redis-memory': memory_warning is above memory_critical",
    ),
    "newest on Redis": (
        HEAD + "  expire: {keep: 3d, keep_newest: §10}\n",
        "job 'expire': keep_newest cannot be had on 'cache': a redis store keeps results in no order of time",
    ),
    "rule that never decides": (
        HEAD + "  expire: {keep: 3d, rules: [{task: 'a.*', keep: 9d}, §{task: a.b, state: FAILURE, keep: 8d}]}\n",
        "this never decides anything, as {task: a.*} in rules.0 comes first and matches every result of {task: a.b, ",
    ),
    "state that never decides": (
        HEAD + "  expire: {keep: 3d, rules: [{state: FAILURE, keep: 9d}], keep_by_state: {FAILURE: §8d}}\n",
        "this never decides anything, as {state: FAILURE} in rules.0 comes first",
    ),
    "gone by rule": (
        HEAD + "  expire: {keep: 9d, rules: [{queue: bulk, keep: §1d}]}\n  archive: {older_than: 7d}\n",
        "job 'expire' removes results of queue: bulk from 'results' after 1d, before 'archive' archives them (1w): "
        "make it longer, or say in its rules that they are archived earlier, or never (older_than: forever)",
    ),
    "gone before archived by rule": (
        HEAD + "  expire: {keep: §9d}\n  archive: {older_than: 7d, rules: [{task: a, older_than: 20d}]}\n",
        "job 'expire' removes results from 'results' after 9d, before 'archive' archives {task: a} (20d)",
    ),
    "gone by Celery before a rule": (
        HEAD.replace("/d}", "/d, result_expires: §9d}")
        + "  archive: {older_than: 7d, rules: [{task: a, older_than: 20d}]}\n",
        "Celery removes results from 'results' after 9d, before 'archive' archives {task: a} (20d)",
    ),
    "state in a rule": (
        HEAD + "  expire: {keep: 3d, rules: [{state: §failure, keep: 9d}]}\n",
        "unknown state 'failure', did you mean FAILURE?",
    ),
    "stuck on SQLite": (
        HEAD.replace("jobs:", "  local: {url: 'db+sqlite:////x'}\njobs:")
        + "  archive: {older_than: 7d, stuck_after: §3d, backend: local}\n",
        "stuck_after cannot be had on 'local': a sqlite store does not say when an unfinished row was last written",
    ),
    "stuck in files": (
        HEAD + "  archive: {older_than: 7d, stuck_after: §3d, backend: results, to: {files: /srv/archive}}\n",
        "stuck_after is for an archive in the same database",
    ),
    "state in lower case": (
        HEAD + "  expire: {keep: 3d, keep_by_state: {failure: §9d}}\n",
        "unknown state 'failure', did you mean FAILURE?",
    ),
    "state misspelt": (
        HEAD + "  expire: {keep: 3d, keep_by_state: {FAILRUE: §9d}}\n",
        "unknown state 'FAILRUE', did you mean FAILURE?",
    ),
    "own state": (
        HEAD + "  expire: {keep: 3d, keep_by_state: {Uploading: §9d}}\n",
        "states are written in capitals, as Celery stores",
    ),
}

CASES = {
    f"{section}: {name}": case
    for section, cases in (("yaml", YAML), ("top", TOP), ("backend", BACKENDS), ("job", JOBS), ("check", CHECKS))
    for name, case in cases.items()
}


@pytest.mark.parametrize(("marked", "message"), CASES.values(), ids=CASES.keys())
def test_problem(marked, message, tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    before, found, after = marked.partition("§")
    assert found, "the case marks no place"
    path = tmp_path / "policy.yaml"
    path.write_text(before + after, encoding="utf-8")

    with pytest.raises(PolicyError) as error:
        load_policy(path)

    place = f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
    assert [str(problem) for problem in error.value.problems][1:] == []
    assert str(error.value.problems[0]).startswith(f"{place}: ")
    assert message in error.value.problems[0].message
    assert "pw123" not in str(error.value)
