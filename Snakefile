# One graph over objective × schedule × guidance × sampler (× seed). See README.md.


include: "workflow/rules/common.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/aggregate.smk"


onstart:
    gc.enable()
    preflight()
    clear_way()
    tell()
    load()


onsuccess:
    over()


onerror:
    over()


rule all:
    default_target: True
    input:
        PATHS.root / "table.csv",
        PATHS.root / "figures" / "samples.png",
        PATHS.root / "report.html",
