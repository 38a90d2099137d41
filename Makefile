# Short names for commands that the README also shows in full.
SHELL := /bin/bash
.DEFAULT_GOAL := help
INVENTORY ?= inventories/sandbox
BIN := .venv/bin
# Ansible ends at a locale that this machine has not; every Debian has this one.
export LC_ALL := C.UTF-8
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The Molecule part of make test. While molecule/default installs the hosts that others start from, one more scenario is enough for two
# processors. Then come those with their own steps, those from bare hosts, those that change what is installed, and those that only look.
BESIDE := redis_tls
OWN := chaos deploy backup rotation foreign
FRESH := load_balancer hardening logs redis
CHANGED := monitoring celery_worker
UNCHANGED := app_release api flower
# What make nightly adds: these on each Debian release, and these as long as they are.
MATRIX := redis app_release api flower celery_worker backup rotation
LONG := chaos_full deploy cluster foreign monitoring monitoring_cluster
# Scenarios at once. More keep two processors no busier, and time limits of seconds are missed.
JOBS := 2
MOLECULE := molecule
# No role and no whole site: make nightly has them, and make test-changed where a change can break them.
LATER := chaos rotation backup
# Which scenarios of these run; what they start from comes first.
ONLY := default $(BESIDE) $(filter-out $(LATER),$(OWN)) $(FRESH) $(CHANGED) $(UNCHANGED)
FIRST = $(if $(filter default $(shell grep -l 'installed: true' molecule/*/molecule.yml | cut -d/ -f2),$(ONLY)),installed)
BASE ?= main
WITH_STEPS := --base-config .config/molecule/config.yml --base-config .config/molecule/steps.yml

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

.PHONY: setup
setup: ## Prepare this machine for all other targets
	@scripts/setup.sh dev

.PHONY: lock
lock: ## An application's requirements with hashes: make lock FILE=~/shop/requirements.in LOCK=~/shop/requirements.lock; or this repository's
	@scripts/setup.sh controller
	@scripts/lock.sh $(FILE) $(LOCK)

.PHONY: sandbox
sandbox: ## One throw-away host with the whole platform, and a task sent through it
	@scripts/sandbox.sh up

.PHONY: sandbox-down
sandbox-down: ## Remove the sandbox
	@scripts/sandbox.sh down

.PHONY: secrets
secrets: ## Write strong random secrets for INVENTORY into its vault file
	@scripts/setup.sh controller
	@ansible-playbook playbooks/ops/generate_secrets.yml -e inventory=$(abspath $(INVENTORY))

.PHONY: site
site: ## Install or update everything in INVENTORY
	@scripts/setup.sh controller
	ansible-playbook -i $(INVENTORY) site.yml

.PHONY: deploy
deploy: ## A new release in INVENTORY, host by host, behind gates
	@scripts/setup.sh controller
	ansible-playbook -i $(INVENTORY) playbooks/ops/deploy.yml

.PHONY: kubernetes-base
kubernetes-base: ## Write deploy/kubernetes/base and what belongs to it from the role's defaults
	ansible-playbook -i localhost, playbooks/containers/kubernetes.yml -e @deploy/kubernetes/base-variables.yml \
	  -e kubernetes_directory=$(CURDIR)/deploy/kubernetes

.PHONY: compose
compose: ## The platform as containers on this machine, with Docker; or ENGINE=podman for podman-compose
	@scripts/setup.sh controller
	ansible-playbook -i inventories/compose playbooks/containers/compose.yml $(if $(ENGINE),-e compose_engine=$(ENGINE))

.PHONY: doctor
doctor: ## Everything that is wrong with INVENTORY's hosts, the most likely cause first
	@scripts/setup.sh controller
	ansible-playbook -i $(INVENTORY) playbooks/diagnose/doctor.yml

.PHONY: logs
logs: ## The timeline of one task across all hosts: make logs TASK=<id>
	@scripts/setup.sh controller
	@ansible-playbook -i $(INVENTORY) playbooks/diagnose/task_timeline.yml -e task=$(TASK)

.PHONY: check
check: setup ## Linters and quick tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint quick-tests

.PHONY: quick-tests
quick-tests:
	pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not integration"

.PHONY: lint
lint: ## Linters alone
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	scripts/lint_ansible.py --offline
	shellcheck --external-sources scripts/*.sh .ci/run

.PHONY: test
test: check ## check, integration tests, and each role and the whole site once in Molecule
	SHORT_RUN=yes pytest -q -n 2 --dist loadfile -m integration
	@$(MAKE) --no-print-directory molecule

.PHONY: molecule
molecule: setup ## The Molecule part of make test; ONLY="redis api" runs these scenarios
	@SHORT_RUN=yes $(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target ONLY='$(ONLY)' setup $(FIRST) \
	  $(addprefix beside-,$(filter $(ONLY),$(BESIDE))) $(addprefix own-,$(filter $(ONLY),$(OWN))) $(if $(filter default,$(ONLY)),proof) \
	  $(addprefix fresh-,$(filter $(ONLY),$(FRESH))) $(addprefix changed-,$(filter $(ONLY),$(CHANGED))) \
	  $(addprefix unchanged-,$(filter $(ONLY),$(UNCHANGED)))

.PHONY: test-changed
test-changed: check ## check, and what can break by the changes since BASE (main): scripts/changed.py has the table
	@set -e; wanted=$$(scripts/changed.py $(BASE)); echo "Since $(BASE):" $${wanted:-nothing more to run}; \
	case "$$wanted" in *integration*) pytest -q -n 2 --dist loadfile -m integration ;; esac; \
	$(MAKE) --no-print-directory molecule ONLY="$$(echo $$wanted)"

.PHONY: nightly
nightly: check ## Both Debian releases for everything, every role from nothing, and the long scenarios; writes their pages in docs
	INVENTORIES=200 pytest -q -n 2 tests/inventories
	pytest -q -n 2 --dist loadfile -m integration
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(addprefix scenario-,default redis_tls load_balancer hardening logs)
	@for system in debian12 debian13; do \
	  TESTHOST_SYSTEM=$$system $(MAKE) --no-print-directory --jobs=2 --output-sync=target $(MATRIX:%=scenario-%) || exit; \
	done
	@$(MAKE) --no-print-directory compat
	@$(MAKE) --no-print-directory $(LONG:%=scenario-%)
	@$(MAKE) --no-print-directory faults

# The scenario default in two halves, so that others start from its hosts as soon as they are installed.
.PHONY: installed
installed:
	$(MOLECULE) destroy --no-command-borders
	STEPS='[create, check, converge, side_effect]' $(MOLECULE) $(WITH_STEPS) test --no-command-borders --destroy=never

.PHONY: proof
proof: $(FIRST)
	STEPS='[idempotence, verify, destroy]' $(MOLECULE) $(WITH_STEPS) test --no-command-borders

# From nothing, with its own steps.
scenario-%:
	$(MOLECULE) test --no-command-borders --scenario-name $*

own-%: $(FIRST)
	$(MOLECULE) test --no-command-borders --scenario-name $*

# molecule/default proves check mode.
FRESH_STEPS := [destroy, create, prepare, converge, idempotence, verify, destroy]
beside-%:
	STEPS='$(FRESH_STEPS)' $(MOLECULE) $(WITH_STEPS) test --no-command-borders --scenario-name $*

fresh-%: $(FIRST)
	STEPS='$(FRESH_STEPS)' $(MOLECULE) $(WITH_STEPS) test --no-command-borders --scenario-name $*

changed-%: $(FIRST)
	STEPS='[destroy, create, converge, idempotence, verify, destroy]' $(MOLECULE) $(WITH_STEPS) test --no-command-borders --scenario-name $*

unchanged-%: $(FIRST)
	STEPS='[destroy, create, verify, destroy]' $(MOLECULE) $(WITH_STEPS) test --no-command-borders --scenario-name $*

.PHONY: sbom
sbom: setup ## Lists of parts of application and controller (CycloneDX), into .cache/sbom
	scripts/sbom.py .cache/sbom requirements/app.txt requirements/platform.txt requirements/controller.txt

.PHONY: pin-images
pin-images: ## The digests of the container images that are named here, as their registries have them now
	scripts/pin_images.py

.PHONY: audit
audit: setup ## Known vulnerabilities in the locked packages; ends with 2 when nobody can be asked
	scripts/audit.py requirements/app.txt requirements/platform.txt requirements/controller.txt

# An audit that nobody could be asked for (2) says so, and is no failure.
.PHONY: security
security: setup ## What attackers try, as a table: what stops it, and where that is tested; and known vulnerabilities
	pytest -q -p tests.attacks -m attack
	PYTHONPATH=$(CURDIR) PYTEST_ADDOPTS="-p tests.attacks -m attack" molecule test --no-command-borders --scenario-name default
	molecule test --no-command-borders --scenario-name rotation
	scripts/audit.py requirements/app.txt requirements/platform.txt requirements/controller.txt || [ $$? -eq 2 ]

.PHONY: bench
bench: ## The guide's way, ours, dramatiq, arq and taskiq in one run; fails when a ratio of ours falls; writes docs/reports/performance.md
	@scripts/setup.sh bench
	python -m tests.bench.performance

.PHONY: compat
compat: setup ## Celery's own integration suite on our worker, transport and Redis rules, beside plain Celery
	python -m tests.compat.run

.PHONY: chaos
chaos: setup ## Every fault on every kind of host; writes docs/reports/chaos.md
	molecule test --no-command-borders --scenario-name chaos_full

.PHONY: faults
faults: setup ## N random faults of a host from SEED on, and what the doctor makes of them; writes docs/reports/faults.md
	@$(MAKE) --no-print-directory installed
	SHORT_RUN=yes molecule test --no-command-borders --scenario-name faults

.PHONY: cluster
cluster: setup ## Many hosts: each kind dies under load, a network falls apart, a host is replaced; writes docs/reports/cluster.md
	molecule test --no-command-borders --scenario-name deploy
	molecule test --no-command-borders --scenario-name cluster

.PHONY: drills
drills: setup ## Fire drills: faults, their alerts, their runbooks; writes docs/reports/drills.md and docs/reports/drills-cluster.md
	molecule test --no-command-borders --scenario-name monitoring
	molecule test --no-command-borders --scenario-name monitoring_cluster
