# Short names for commands that the README also shows in full.
SHELL := /bin/bash
.DEFAULT_GOAL := help
INVENTORY ?= inventories/sandbox
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# make chaos runs chaos_full, make drills monitoring and monitoring_cluster, make cluster deploy and cluster. chaos has the machine for
# itself: it measures how long things stall.
SCENARIOS := $(filter-out chaos chaos_full cluster deploy monitoring monitoring_cluster,$(notdir $(patsubst %/molecule.yml,%,$(wildcard molecule/*/molecule.yml))))

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

.PHONY: setup
setup: ## Prepare this machine for all other targets
	@scripts/setup.sh dev

.PHONY: sandbox
sandbox: ## One throw-away host with the whole platform, and a task sent through it
	@scripts/sandbox.sh up

.PHONY: sandbox-down
sandbox-down: ## Remove the sandbox
	@scripts/sandbox.sh down

.PHONY: secrets
secrets: ## Write strong random secrets for INVENTORY into its vault file
	@scripts/setup.sh controller
	@ansible-playbook playbooks/secrets.yml -e inventory=$(abspath $(INVENTORY))

.PHONY: deploy
deploy: ## Install or update everything in INVENTORY
	@scripts/setup.sh controller
	ansible-playbook -i $(INVENTORY) site.yml

.PHONY: kubernetes-base
kubernetes-base: ## Write deploy/kubernetes/base and what belongs to it from the role's defaults
	ansible-playbook -i localhost, playbooks/kubernetes.yml -e @deploy/kubernetes/base-variables.yml \
	  -e kubernetes_directory=$(CURDIR)/deploy/kubernetes

.PHONY: compose
compose: ## The platform as containers on this machine, with Docker; or ENGINE=podman for podman-compose
	@scripts/setup.sh controller
	ansible-playbook -i inventories/compose playbooks/compose.yml $(if $(ENGINE),-e compose_engine=$(ENGINE))

.PHONY: doctor
doctor: ## Everything that is wrong with INVENTORY's hosts, the most likely cause first
	@scripts/setup.sh controller
	ansible-playbook -i $(INVENTORY) playbooks/doctor.yml

.PHONY: logs
logs: ## The story of one task across all hosts: make logs TASK=<id>
	@scripts/setup.sh controller
	@ansible-playbook -i $(INVENTORY) playbooks/logs.yml -e task=$(TASK)

.PHONY: check
check: setup ## Linters and quick tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint quick-tests

.PHONY: quick-tests
quick-tests:
	pytest -q -n auto --dist loadfile -m "not integration"

.PHONY: lint
lint: ## Linters alone
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	scripts/lint_ansible.py --offline
	shellcheck --external-sources scripts/*.sh .ci/run

.PHONY: test
test: check ## Everything that must pass: check, integration tests, all Molecule scenarios
	pytest -q -n 2 --dist loadfile -m integration
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(addprefix scenario-,$(SCENARIOS))
	@$(MAKE) --no-print-directory scenario-chaos

scenario-%:
	molecule test --no-command-borders --scenario-name $*

.PHONY: sbom
sbom: setup ## Lists of parts of application and controller (CycloneDX), into .cache/sbom
	scripts/sbom.py .cache/sbom requirements/app.txt requirements/controller.txt

.PHONY: audit
audit: setup ## Known vulnerabilities in the locked packages; ends with 2 when nobody can be asked
	scripts/audit.py requirements/app.txt requirements/controller.txt

# An audit that nobody could be asked for (2) says so, and is no failure.
.PHONY: security
security: setup ## What attackers try: forged messages, the API's own document, a whole host, known vulnerabilities
	pytest -q tests/test_forged_messages.py tests/test_flower.py tests/test_api_fuzz.py
	PYTEST_ADDOPTS="-k 'attacks or rotation'" molecule test --no-command-borders --scenario-name default
	scripts/audit.py requirements/app.txt requirements/controller.txt || [ $$? -eq 2 ]

.PHONY: chaos
chaos: setup ## Every fault on every kind of host; writes docs/chaos.md
	molecule test --no-command-borders --scenario-name chaos_full

.PHONY: cluster
cluster: setup ## Many hosts: each kind dies under load, a network falls apart, a host is replaced; writes docs/cluster.md
	molecule test --no-command-borders --scenario-name deploy
	molecule test --no-command-borders --scenario-name cluster

.PHONY: drills
drills: setup ## Fire drills: faults, their alerts, their runbooks; writes docs/drills.md and docs/drills-cluster.md
	molecule test --no-command-borders --scenario-name monitoring
	molecule test --no-command-borders --scenario-name monitoring_cluster
