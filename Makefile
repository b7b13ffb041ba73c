# The whole set-up in two commands: `make demo` and `make test`. Each works on its own in a fresh clone.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = runs/demo
SERVERS = .servers
PEERS = .peers
NEWEST = .newest
LOWEST = .lowest
TOOLS = .tools
ORACLES = .oracles
UV = $(TOOLS)/bin/uv
PEER_NAMES = lm-deluge async-batch-llm openai litellm

.PHONY: demo demo-eval demo-cluster test test-long test-newest test-lowest test-wheel test-stores torture torture-cluster test-servers test-oracles bench bench-peers bench-parts bench-pacing bench-queues bench-cluster check docs docs-site format lock lock-peers clean

# The main job against the embedded simulator: a prompt set with tools becomes two tables.
demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/batchrun run jobs/overnight_dataset.toml --simulate -o $(DEMO)
	$(BIN)/python examples/read_tables.py $(DEMO)

# An eval against the embedded simulator: two models of known ability, scored, measured and compared.
demo-eval: $(VENV)/installed
	rm -rf $(DEMO)-eval
	$(BIN)/batchrun run jobs/eval_run.toml --simulate --answers examples/questions.jsonl --right 0.75,0.2 --right gpt-6-luna=0.6,0.2 -o $(DEMO)-eval
	$(BIN)/batchrun score $(DEMO)-eval
	$(BIN)/batchrun metrics $(DEMO)-eval
	$(BIN)/batchrun compare $(DEMO)-eval --scorer answer
	$(BIN)/batchrun report $(DEMO)-eval --html $(DEMO)-eval.html

# Three workers on a Ray cluster of this machine; one of them is killed, and each row is there once.
demo-cluster: $(VENV)/installed
	rm -rf $(DEMO)-cluster
	RAY_ADDRESS=local $(BIN)/python examples/kill_a_worker.py $(DEMO)-cluster \
		$(BIN)/batchrun run examples/questions.jsonl --prompt '{{ question }}' --model gpt-6-luna --samples 100 \
		--simulate --concurrency 60 --executor ray --workers 3 -o $(DEMO)-cluster
	$(BIN)/batchrun verify $(DEMO)-cluster

# What CI runs: lint, types, imports, links of the docs, the site of the docs, tests.
test: check docs-site
	$(BIN)/pytest -q -n 4 --dist worksteal

# The longer forms of tests of which `make test` runs a short one; a few minutes.
test-long: $(VENV)/installed
	$(BIN)/pytest -q -n 4 --dist worksteal -m long

# The tests with the newest version of every dependency, which is what `pip install .` installs today.
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(NEWEST)/bin/pytest -q -n 4 --dist worksteal

# The tests with the lowest version of every dependency that pyproject.toml allows.
test-lowest: $(TOOLS)/installed
	$(UV) venv --quiet --clear --python $(PYTHON) $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST) --resolution lowest-direct -e '.[dev]'
	$(LOWEST)/bin/pytest -q -n 4 --dist worksteal

# Builds the wheel and the sdist, installs them with pip and with uv in empty environments, with and
# without each extra, and runs the walk-through of the README there; a few minutes.
test-wheel: $(VENV)/installed $(TOOLS)/installed
	$(BIN)/pytest -q -m wheel tests/wheel

# Runs in the stores of Azure and Google, as Azurite and fake-gcs-server are, and of 12,000 rows in
# S3, as moto is: killed at each write, with writes that fail, arrive by half or are never answered,
# and with workers on Ray; all on loopback; installs them, needs npm. Half an hour.
test-stores: $(VENV)/installed $(SERVERS)/stores/installed
	$(BIN)/pytest -q -n 2 -m "stores or long" tests/remote

# 1,000 kills of real runs (TORTURE_KILLS=N for another number); the figures land in runs/torture.md.
torture: $(VENV)/installed
	$(BIN)/pytest -q -s -m torture tests/torture/test_torture.py

# Runs with three workers on Ray, of which workers, the driver and Ray's own processes are killed or
# stopped, or workers cut off, at random moments (TORTURE_KILLS=N, default 60, and a third as often with
# the tables in a store, and where no file can be locked); figures in runs/torture_cluster.md,
# torture_cluster_store.md and torture_cluster_without_locks.md.
torture-cluster: $(VENV)/installed
	$(BIN)/pytest -q -s -m torture tests/torture/test_cluster_torture.py

# 50 rows in each mode against three servers of other projects, and clients of other projects with 30
# requests in each mode against the simulator, all on loopback; installs them, needs npm and 4 GB.
test-servers: $(VENV)/installed $(SERVERS)/litellm/installed $(SERVERS)/clients/installed \
		$(SERVERS)/aimock/installed $(SERVERS)/node_client/installed $(SERVERS)/vllm/installed
	$(BIN)/pytest -q -m servers tests/servers

# Our scorers beside those of inspect_ai and lm-evaluation-harness, which it installs (0.8 GB).
test-oracles: $(VENV)/installed $(ORACLES)/installed
	$(BIN)/pytest -q -m oracles tests/oracles

# Speed and memory beside a bare aiohttp loop and the peers that are installed; about half an hour, on
# a machine that does nothing else.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed

# The peers of `make bench`, each in an environment of its own.
bench-peers: $(PEER_NAMES:%=$(PEERS)/%/installed)

# What one row costs, by part; Arrow's memory as the command takes it.
bench-parts: $(VENV)/installed
	ARROW_DEFAULT_MEMORY_POOL=system $(BIN)/python -m benchmarks.parts

# How batchrun finds hidden limits, measured over a socket; about twenty minutes.
bench-pacing: $(VENV)/installed
	$(BIN)/python -m benchmarks.pacing

# Auto beside fixed numbers in flight and the openai SDK, against vLLM for CPUs and llama.cpp; about
# half an hour, on a machine that does nothing else.
bench-queues: $(VENV)/installed $(SERVERS)/vllm/installed $(SERVERS)/llama/installed
	$(BIN)/python -m benchmarks.queues

# A server with a hidden limit and 1, 3 and 8 workers; what a row costs with workers and without; on a
# machine that does nothing else.
bench-cluster: $(VENV)/installed
	$(BIN)/python -m benchmarks.cluster

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/check_links.py

# The documentation as a web site in build/docs; a warning is an error.
docs-site: $(VENV)/installed
	$(BIN)/sphinx-build -W --keep-going --quiet docs build/docs

# docs/protocol.md, made from the statements and their tests.
docs: $(VENV)/installed
	$(BIN)/python tests/protocol/make_docs.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pinned versions, renewed.
lock: $(TOOLS)/installed
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate -o requirements.lock

# The same for the peers of `make bench`.
lock-peers: $(TOOLS)/installed
	for name in $(PEER_NAMES); do \
		$(UV) pip compile benchmarks/peers/$$name.in --universal --python-version 3.11 --upgrade \
			--generate-hashes --no-header --no-annotate -o benchmarks/peers/$$name.lock || exit 1; \
	done

clean:
	rm -rf $(VENV) $(SERVERS) $(PEERS) $(NEWEST) $(LOWEST) $(TOOLS) $(ORACLES) build runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batchrun needs Python 3.11 or later; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# uv, and what checks the metadata of a release.
$(TOOLS)/installed: tests/wheel/tools.lock
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $<
	touch $@

$(PEERS)/%/installed: benchmarks/peers/%.lock
	$(PYTHON) -m venv --clear $(PEERS)/$*
	$(PEERS)/$*/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $<
	touch $@

$(ORACLES)/installed: tests/oracles/oracles.lock
	$(PYTHON) -m venv --clear $(ORACLES)
	$(ORACLES)/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	touch $@

# From PyPI: each in an environment of its own; a lock names all that is needed.
$(SERVERS)/litellm/installed $(SERVERS)/clients/installed: $(SERVERS)/%/installed: tests/servers/%.lock
	$(PYTHON) -m venv --clear $(SERVERS)/$*
	$(SERVERS)/$*/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r $<
	touch $@

# llama.cpp's server is built from the source that llama-cpp-python carries: a quarter of an hour on
# two cores, with a compiler for C++. Nothing of its web page, so that nothing else is fetched.
$(SERVERS)/llama/installed: tests/servers/llama.lock tests/servers/llama_source.lock tests/servers/prepare_llama.py
	rm -rf $(SERVERS)/llama
	$(PYTHON) -m venv $(SERVERS)/llama
	$(SERVERS)/llama/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r $<
	$(SERVERS)/llama/bin/pip download --quiet --disable-pip-version-check --require-hashes --no-deps --no-binary :all: \
		-d $(SERVERS)/llama -r tests/servers/llama_source.lock
	mkdir $(SERVERS)/llama/source
	tar -xzf $(SERVERS)/llama/llama_cpp_python-*.tar.gz --strip-components=1 -C $(SERVERS)/llama/source
	$(SERVERS)/llama/bin/cmake -S $(SERVERS)/llama/source/vendor/llama.cpp -B $(SERVERS)/llama/built -G Ninja \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(SERVERS))/llama/bin/ninja -DCMAKE_BUILD_TYPE=Release \
		-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
		-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF >/dev/null
	$(SERVERS)/llama/bin/ninja -C $(SERVERS)/llama/built llama-server >/dev/null
	cp $(SERVERS)/llama/built/bin/llama-server $(SERVERS)/llama/
	rm -rf $(SERVERS)/llama/source $(SERVERS)/llama/built $(SERVERS)/llama/*.tar.gz
	$(SERVERS)/llama/bin/python tests/servers/prepare_llama.py $(SERVERS)/llama/tiny.gguf
	touch $@

$(SERVERS)/stores/installed: tests/remote/stores/package.json tests/remote/stores/package-lock.json tests/remote/stores/python.lock
	mkdir -p $(SERVERS)/stores
	cp $^ $(SERVERS)/stores
	npm ci --prefix $(SERVERS)/stores --silent --no-audit --no-fund --ignore-scripts
	$(PYTHON) -m venv --clear $(SERVERS)/stores/venv
	$(SERVERS)/stores/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r tests/remote/stores/python.lock
	touch $@

# From npm.
$(SERVERS)/aimock/installed $(SERVERS)/node_client/installed: $(SERVERS)/%/installed: tests/servers/%/package.json tests/servers/%/package-lock.json
	mkdir -p $(SERVERS)/$*
	cp $^ $(SERVERS)/$*
	npm ci --prefix $(SERVERS)/$* --silent --no-audit --no-fund --ignore-scripts
	touch $@

# vLLM for CPUs is 3.5 GB, for Linux, and needs a package index that has torch for CPUs. Where it
# cannot be installed, its tests are skipped.
$(SERVERS)/vllm/installed: tests/servers/vllm.lock tests/servers/prepare_vllm.py
	$(PYTHON) -m venv --clear $(SERVERS)/vllm
	$(SERVERS)/vllm/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r $< \
		&& $(SERVERS)/vllm/bin/python tests/servers/prepare_vllm.py $(SERVERS)/vllm/tiny \
		&& touch $@ \
		|| echo "vLLM for CPUs cannot be installed here: its tests will be skipped"
