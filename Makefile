# `make demo` shows the system, `make test` proves it, `make install` puts it under systemd. `make help` lists the rest.

PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR := $(PREFIX)/lib/redisq
BINDIR := $(PREFIX)/bin
UNITDIR ?= /usr/lib/systemd/system
SYSUSERSDIR ?= /usr/lib/sysusers.d
TMPFILESDIR ?= /usr/lib/tmpfiles.d
CONFDIR := /etc/redisq

VENV ?= .venv
# Whole files, for each has servers of its own to start.
PARALLEL ?= --numprocesses=3 --dist=loadfile
UNITS := redisq-worker@.service redisq-scheduler.service redisq.target
INSTALLED := $(DESTDIR)$(LIBDIR)
FRESH := $(INSTALLED).new
# Exactly what a lock names, by its digest; nothing of another's is built here.
LOCKED := -m pip install --quiet --require-hashes --only-binary=:all:
# Of the build backend that is locked too, and so already there.
OURS := -m pip install --quiet --no-deps --no-build-isolation
DROPIN := $(DESTDIR)$(UNITDIR)/redisq-worker@.service.d

.PHONY: help demo test test-quick test-chaos lint types units check bench bench-quick failpoints chaos fuzz mutants mutants-today lock install installed uninstall clean python

help:
	@echo "make demo         twenty synthetic pages, fourteen days, through a private Redis and PostgreSQL"
	@echo "make test         every test this machine can run but chaos and fail points; test-quick leaves out the slow ones"
	@echo "make check        lint, types and make test; units for the systemd units alone"
	@echo "make bench        redisq beside its peers, written to docs/; bench-quick: redisq and bare loops, in half a minute"
	@echo "make failpoints   a strike at every point around a call to a server, as CI does it"
	@echo "make test-chaos   five seeds of chaos, as CI runs them"
	@echo "make chaos        faults drawn from SEED=\"1 2 3\" for SECONDS each, watched by an auditor"
	@echo "make fuzz         every place that reads foreign bytes, for SECONDS in all"
	@echo "make mutants      weakened queues, each of which the auditor must catch; mutants-today: two of them, as CI does"
	@echo "make lock         the versions that everything here runs with, and sbom.json; the newest with UPGRADE=--upgrade"
	@echo "make install      into PREFIX=$(PREFIX), units into UNITDIR=$(UNITDIR); DESTDIR is honoured"
	@echo "make uninstall    takes out what install put in; keeps $(CONFDIR) and all data"
	@echo "make clean        removes $(VENV) and everything else that was made here"

demo: $(VENV)/.with-embedded
	@$(VENV)/bin/redisq demo $(DEMO)

test: $(VENV)/.with-dev
	$(VENV)/bin/pytest $(PARALLEL) -m "not chaos and not failpoints" $(TESTS)

test-quick: $(VENV)/.with-dev
	$(VENV)/bin/pytest $(PARALLEL) -m "not slow and not docker and not systemd" $(TESTS)

failpoints: $(VENV)/.with-dev
	$(VENV)/bin/pytest -m failpoints $(TESTS)

test-chaos: $(VENV)/.with-dev
	$(VENV)/bin/pytest -m chaos $(TESTS)

lint: $(VENV)/.with-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.with-dev
	$(VENV)/bin/mypy

units: $(VENV)/.with-dev
	$(VENV)/bin/pytest tests/test_units.py

# The units are among the tests.
check: lint types test

# Parts of it: make bench ONLY="ours raw bullmq" PARTS="drain idle" ROUNDS=1. Only the whole is written to docs/.
bench: $(VENV)/.with-dev
	$(VENV)/bin/python -m tests.bench $(if $(ONLY),--only $(ONLY)) $(if $(PARTS),--parts $(PARTS)) \
	  --rounds $(or $(ROUNDS),3) --minutes $(or $(MINUTES),2) $(if $(ONLY)$(PARTS),,--write docs)

bench-quick: $(VENV)/.with-dev
	$(VENV)/bin/python -m tests.bench --quick

chaos: $(VENV)/.with-dev
	$(VENV)/bin/python -m tests.chaos --seed $(or $(SEED),1 2 3 4 5) --seconds $(or $(SECONDS),12)

fuzz: $(VENV)/.with-dev
	FUZZ_SECONDS=$(or $(SECONDS),600) $(VENV)/bin/pytest -s --durations=0 tests/test_fuzz.py tests/test_import_reader.py

mutants: $(VENV)/.with-dev
	$(VENV)/bin/python -m tests.chaos --seed $(or $(SEED),1 2 3 4 5) --seconds $(or $(SECONDS),25) --mutants

mutants-today: $(VENV)/.with-dev
	$(VENV)/bin/python -m tests.chaos --seed $(or $(SEED),1 2 3 4 5) --seconds $(or $(SECONDS),25) --today

python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "redisq runs on Python 3.11 to 3.13; $(PYTHON) is not one. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }

# Installed again only when the locks, the project's own dependencies or its programs change: an editable install copies
# the programs.
$(VENV)/.with-%: requirements/%.txt requirements/build.txt pyproject.toml bin/worker bin/scheduler | python
	@echo "Installing redisq[$*] into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(LOCKED) -r requirements/build.txt -r requirements/$*.txt
	@$(VENV)/bin/python $(OURS) --editable .
	@touch $@

lock: python
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --upgrade uv
	@$(PYTHON) requirements/lock.py build/lock/bin/uv $(UPGRADE)
	@rm -rf build/lock

# Whatever the umask is: the services read all that is installed, and nobody else writes to it.
install: python
	@[ -n "$(DESTDIR)" ] || case "$$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))')" in /home/*|/root/*) \
	  echo "$(PYTHON) lies in a home directory, which the units cannot see: make install PYTHON=/usr/bin/python3" >&2; exit 1;; esac
	@umask 022; $(MAKE) --no-print-directory installed

# The programs are made beside those that are there, and take their place when they are whole. A unit must not name a
# path below DESTDIR either, so everything that a virtual environment writes down about its own place is put right.
installed:
	@rm -rf build/lib build/bdist.* build/scripts-* $(FRESH)
	@$(PYTHON) -m venv $(FRESH)
	@$(FRESH)/bin/python $(LOCKED) --no-compile -r requirements/build.txt -r requirements/install.txt
	@$(FRESH)/bin/python $(OURS) --no-compile .
	@$(FRESH)/bin/python -m pip uninstall --quiet --yes setuptools pip
	@grep -rlIF '$(FRESH)' $(FRESH)/bin $(FRESH)/pyvenv.cfg | xargs sed -i 's|$(FRESH)|$(LIBDIR)|g'
	@$(FRESH)/bin/python -m compileall -q -f -j 0 -s '$(FRESH)' -p '$(LIBDIR)' $(FRESH)/lib
	@install -m 644 systemd/redisq.acl sbom.json $(FRESH)
	@rm -rf $(INSTALLED).old; [ ! -e $(INSTALLED) ] || mv $(INSTALLED) $(INSTALLED).old; mv $(FRESH) $(INSTALLED)
	@rm -rf $(INSTALLED).old
	@install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(UNITDIR) $(DROPIN) $(DESTDIR)$(SYSUSERSDIR) $(DESTDIR)$(TMPFILESDIR) \
	  $(DESTDIR)$(CONFDIR)
	@ln -sfn $(LIBDIR)/bin/redisq $(DESTDIR)$(BINDIR)/redisq
	@for unit in $(UNITS); do \
	  sed 's|@LIBDIR@|$(LIBDIR)|' systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit && chmod 644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	@install -m 644 systemd/redisq-worker-network.conf $(DROPIN)/network.conf
	@install -m 644 systemd/redisq.sysusers $(DESTDIR)$(SYSUSERSDIR)/redisq.conf
	@install -m 644 systemd/redisq.tmpfiles $(DESTDIR)$(TMPFILESDIR)/redisq.conf
	@[ -e $(DESTDIR)$(CONFDIR)/redisq.env ] || install -m 644 systemd/redisq.env.example $(DESTDIR)$(CONFDIR)/redisq.env
	@if [ -z "$(DESTDIR)" ] && [ "$$(id -u)" = 0 ]; then \
	  systemd-sysusers $(SYSUSERSDIR)/redisq.conf && systemd-tmpfiles --create $(TMPFILESDIR)/redisq.conf && \
	  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; fi
	@echo "Installed. Next: edit $(CONFDIR)/redisq.env, put the secrets into $(CONFDIR)/credentials/,"
	@echo "run 'redisq db upgrade', then 'systemctl enable --now redisq.target'."
	@echo "After each start or restart of redisq.target: 'systemctl list-units --failed \"redisq*\"' and 'redisq doctor',"
	@echo "for systemctl ends with 0 even if a unit could not use its settings."

# A worker that drains still needs its programs, so they go after it. The template stands for all its instances.
uninstall:
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then \
	  systemctl stop redisq.target redisq-scheduler.service 'redisq-worker@*.service' 2> /dev/null; \
	  systemctl disable --quiet $(UNITS) 2> /dev/null; true; fi
	@rm -rf $(INSTALLED) $(FRESH) $(INSTALLED).old $(DROPIN)
	@rm -f $(DESTDIR)$(BINDIR)/redisq $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	@rm -f $(DESTDIR)$(SYSUSERSDIR)/redisq.conf $(DESTDIR)$(TMPFILESDIR)/redisq.conf
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "Removed. Kept: $(CONFDIR), /var/lib/redisq, the user redisq, and everything in Redis and PostgreSQL."

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
