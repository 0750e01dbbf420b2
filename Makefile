# Everything a user needs: `make demo` and `make test`. Both create .venv on first use.
#
# TORCH says which torch to install. The default is the version that was tested; where pip offers
# a choice of builds, name the one for your GPU here, with pip's own options:
#   make demo TORCH="torch==2.13.0 --index-url INDEX_OF_YOUR_BUILD"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = demo-output

.PHONY: demo test test-slow lint bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

demo: $(VENV)/installed
	mkdir -p $(DEMO)
	$(BIN)/mdbackmap convert tutorials/data/ubiquitin.xtc -o $(DEMO)/ubiquitin_aa.xtc
	$(BIN)/mdbackmap validate $(DEMO)/ubiquitin_aa.xtc -s $(DEMO)/ubiquitin_aa.pdb \
		--cg tutorials/data/ubiquitin.xtc --html $(DEMO)/report.html

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.suite $(BENCH) $(if $(wildcard $(DATA)/cg),--data $(DATA)/cg)

# Weights, each by one command: `make weights/martini3 DATA=folder`; see docs/training.md.
DATA ?= data
WORK ?= training
PREPARE = mkdir -p $(WORK) && $(BIN)/mdbackmap prepare
PROTEINS = $(DATA)/proteins/train.tar.xz --exclude mdbackmap/weights/rosetta.txt
LIKE = $(foreach run,$(filter-out %/big_bilayer/traj.xtc,$(wildcard $(DATA)/cg/*/traj.xtc)),\
	--like $(run))
NAMES = $(shell cut -f1 $(DATA)/ligands/beads.tsv | sort -u)
MOLECULES = $(foreach name,$(NAMES),$(if $(wildcard $(DATA)/ligands/train/$(name).xtc),\
	$(DATA)/ligands/$(name).pdb $(DATA)/ligands/train/$(name).xtc))

$(WORK)/proteins.npz: ; $(PREPARE) $(PROTEINS) -o $@
$(WORK)/proteins_validation.npz: ; $(PREPARE) $(DATA)/proteins/val.tar.xz -o $@
$(WORK)/proteins_simulated.npz: ; $(PREPARE) $(PROTEINS) $(LIKE) -o $@
$(WORK)/proteins_validation_simulated.npz: ; $(PREPARE) $(DATA)/proteins/val.tar.xz $(LIKE) -o $@
# Lipids whose heads no membrane at hand holds: so many frames of each, alone in implicit water.
ALONE = POPI:40 POPI13:40 POPI14:40 POPI15:40 POPI24:40 POPI2A:40 POPI2C:40 \
	POPI33:40 CER160:80 PVCL2:40 POPA:40
NAMES_ALONE = $(foreach lipid,$(ALONE),$(firstword $(subst :, ,$(lipid))))
LIPIDS_ALONE = $(NAMES_ALONE:%=$(WORK)/alone/%.xtc)
PREPARE_ALONE = $(PREPARE) $(foreach xtc,$(LIPIDS_ALONE),$(xtc:.xtc=.cif) $(xtc))
$(WORK)/alone/%.xtc: | $(VENV)/installed
	$(BIN)/python -m benchmarks.lone_lipids $* -o $(WORK)/alone --seed 11 \
		--frames $(lastword $(subst :, ,$(filter $*:%,$(ALONE))))
$(WORK)/lipids_alone.npz: $(LIPIDS_ALONE) ; $(PREPARE_ALONE) -o $@
$(WORK)/lipids_alone_simulated.npz: $(LIPIDS_ALONE) ; $(PREPARE_ALONE) $(LIKE) -o $@

$(WORK)/lipids.npz: ; $(PREPARE) $(DATA)/lipids/train/* -o $@
$(WORK)/lipids_simulated.npz: ; $(PREPARE) $(DATA)/lipids/train/* $(LIKE) -o $@
$(WORK)/lipids_test.npz: ; $(PREPARE) $(DATA)/lipids/test/* -o $@
$(WORK)/lipids_test_simulated.npz: ; $(PREPARE) $(DATA)/lipids/test/* $(LIKE) -o $@
$(WORK)/lipids_test_martini2.npz: ; $(PREPARE) $(DATA)/lipids/test/* --mapping martini2 -o $@
$(WORK)/molecules.npz: ; $(PREPARE) $(MOLECULES) --stride 2 -o $@
$(WORK)/proteins_ca.npz: ; $(PREPARE) $(DATA)/proteins/train.tar.xz --mapping ca -o $@
$(WORK)/proteins_martini2.npz: ; $(PREPARE) $(PROTEINS) --mapping martini2 --max-residues 900 -o $@
$(WORK)/lipids_martini2.npz: ; $(PREPARE) $(DATA)/lipids/train/* --mapping martini2 -o $@
$(WORK)/proteins_%.npz: ; $(PREPARE) $(PROTEINS) --mapping $* -o $@
$(WORK)/proteins_validation_%.npz: ; $(PREPARE) $(DATA)/proteins/val.tar.xz --mapping $* -o $@

MAPPED = $(addprefix $(WORK)/,proteins.npz proteins_validation.npz lipids.npz molecules.npz)
SIMULATED = $(addprefix $(WORK)/,proteins_simulated.npz proteins_validation_simulated.npz \
	lipids_simulated.npz)

$(WORK)/martini3-mapped-first/best.safetensors: $(MAPPED)
$(WORK)/martini3-first/best.safetensors: $(MAPPED) $(SIMULATED)
$(WORK)/bb-on-ca-first/best.safetensors: $(addprefix $(WORK)/,proteins_bb-on-ca.npz \
	proteins_validation_bb-on-ca.npz)
weights/martini3-mapped weights/martini3 weights/bb-on-ca: \
	weights/%: $(WORK)/%-first/best.safetensors
weights/ca weights/martini2: weights/%: $(WORK)/proteins_%.npz $(WORK)/proteins_validation_%.npz
weights/martini3-lipids: $(addprefix $(WORK)/,lipids.npz lipids_simulated.npz \
	lipids_test_simulated.npz)
weights/martini3-rare-lipids: $(addprefix $(WORK)/,lipids.npz lipids_simulated.npz \
	lipids_alone.npz lipids_alone_simulated.npz lipids_test.npz)
weights/martini3-lipids-mapped: $(addprefix $(WORK)/,lipids.npz lipids_test.npz)
weights/martini2-lipids: $(addprefix $(WORK)/,lipids_martini2.npz lipids_test_martini2.npz)
weights/martini2: $(WORK)/lipids_martini2.npz $(WORK)/martini3.safetensors
$(WORK)/martini3.safetensors: ; mkdir -p $(WORK) && cp mdbackmap/weights/martini3.safetensors $@
# Some models are trained in two stages.
$(WORK)/%-first/best.safetensors: $(VENV)/installed
	cp mdbackmap/weights/$*-first.yaml $(WORK)/
	$(BIN)/mdbackmap train $(WORK)/$*-first.yaml
weights/%: $(VENV)/installed
	cp mdbackmap/weights/$*.yaml $(WORK)/
	$(BIN)/mdbackmap train $(WORK)/$*.yaml
	cp $(WORK)/$*/best.safetensors mdbackmap/weights/$*.safetensors

clean:
	rm -rf $(VENV) $(DEMO) build dist
