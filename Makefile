# The main job:      make lab      real hosts, real vLLM, a real gateway, a completion
# The tests:         make test     (make test-long: those too that take minutes more)
# In a minute:       make check    lint, types, unit and golden tests
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
ACTIVATE := . ./activate

.PHONY: help setup lab lab-down rehearse plugins test test-long check bench engines locks golden docs venv

help: ## Print what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## Install everything that the lab and the tests need (Debian or Ubuntu, root)
	@tools/setup

venv: ## Make .venv alone, without root
	@tools/venv

lab: ## From nothing to a served completion: pulumi up, ansible-playbook site.yml, questions and a tool call
	@start=$$(date +%s); tools/setup; $(ACTIVATE); \
	python -m lab.job --setup-seconds $$(( $$(date +%s) - start ))

lab-down: ## Remove the lab: pulumi destroy, then whatever a killed run left
	@tools/venv; $(ACTIVATE); python -m lab.job --down

rehearse: ## Play a fleet of rented hosts through, FLEET=example-aws: real engine, real SDKs, clouds that are rehearsed
	@tools/setup; $(ACTIVATE); python -m lab.rehearsal $(or $(FLEET),example-aws)

plugins: venv ## Fetch ahead what Pulumi needs for the clouds of a fleet, FLEET=NAME; 'pulumi up' also fetches it by itself
	@$(ACTIVATE); python -m tools.plugins "$(or $(FLEET),$(error give the fleet: make plugins FLEET=NAME))"

test: ## Set everything up and run the tests, end to end on real hosts
	@tools/setup; $(ACTIVATE); tools/lint; \
	pytest -q -n 3 --dist loadfile --no-loadscope-reorder -rfEs --durations=10 --heartbeat 45

test-long: ## Run every test, those too that take minutes for what a shorter one shows in part
	@tools/setup; $(ACTIVATE); tools/lint; \
	pytest -q -n 3 --dist loadfile --no-loadscope-reorder -rfEs --durations=10 --heartbeat 45 --long

check: venv ## Lint, types, and the tests that need neither root nor a network
	@$(ACTIVATE); tools/check

bench: ## Time the unchanged fleet, a change and a new fleet beside peers, large stacks, sessions through gateways, the start of a new host, artifacts with and without a mirror
	@tools/setup; $(ACTIVATE); python -m bench.run; python -m bench.change; python -m bench.engine; python -m bench.affinity; python -m bench.coldstart; python -m bench.artifacts

# Not with -q: it hides the warnings that strict counts.
docs: venv ## Build the site of docs/ into site/; a wrong link or a page that is missing in the menu is an error
	@$(ACTIVATE); NO_MKDOCS_2_WARNING=1 mkdocs build

engines: ## Generate recipes/engines/names again from the published wheels
	@tools/venv; $(ACTIVATE); python -m tools.engines generate

locks: ## Make the locks of the engines again from the package index
	@tools/venv; $(ACTIVATE); python -m tools.locks

golden: venv ## Write the golden copies and generated documents again; look at the diff before you commit
	@$(ACTIVATE); python -m tools.alone golden bash -c 'python -m tools.docs && pytest -q tests/golden --update-golden'
