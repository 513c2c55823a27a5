"""What the help says besides the arguments: the commands by what they are for, and examples."""

DESCRIPTION = "A trained network and a budget in, a front of compressed models out:\nevery weight becomes low-rank + sparse."
EPILOG = """\
begin
  init       write a commented study file for your model and data
  layers     list what a study can compress, and what not, and why
  search     run a study, or go on with it where it stopped
look
  front      show the models that a study found
  report     write front.csv, front.parquet and report.html anew
  ask        what a study knows about other budgets, in seconds
finish
  polish     fit the layers of one model of a study once more
  recover    finetune a model of the front at length
  fidelity   how far the search's short finetunes rank models rightly
ship
  export     write a model of the front, with ONNX and a certificate
  verify     load an exported model anew, and check all that was claimed of it
measure
  profile    measure how long every choice of every layer takes (--latency)
  latency    the same: measure here, or pack | ingest for another machine
share
  worker     search a study that another machine began
  move       move a study into a storage that machines share, or back

STUDY is a study file, the name of a shipped one, or the folder of a study.
A folder is enough where the model is timm's and the data are folders of
images. Where they are code of yours, add --study FILE: nothing in a folder
may say which code runs.

examples
  lrsearch search digits                               the example: 3 minutes
  lrsearch search --timm resnet18 --images photos      timm's on your images
  lrsearch init model.py                               a study file for yours
  lrsearch search study.yaml --set budget.params=0.3   again to go on
  lrsearch front runs/study                            what it found
  lrsearch export runs/study --pick 'params_ratio<=0.3'
  lrsearch verify runs/study/export --study study.yaml
  lrsearch COMMAND --help                              more on one command

exit codes
  0    done; of export and verify: all checks passed
  1    export or verify: a check failed
  2    a mistake to mend, said in one line on stderr (--debug: the traceback)
  130  interrupted (Ctrl-C), 143 terminated: what is finished is kept
"""
EXAMPLES = {
    "init": ["lrsearch init model.py", "lrsearch init --timm resnet18 --images photos --out study.yaml"],
    "layers": ["lrsearch layers study.yaml", "lrsearch layers digits --json"],
    "search": [
        "lrsearch search digits", "lrsearch search study.yaml --set budget.weight_bytes='512 KiB'",
        "lrsearch search --timm resnet18 --images photos --set budget.params=0.3", "lrsearch search runs/study --trials 100",
        "lrsearch search study.yaml --workers auto",
        "lrsearch search study.yaml --storage postgresql://me@host/studies --ray auto --workers 8",
    ],
    "worker": ["lrsearch worker --storage postgresql://me@host/studies --study digits"],
    "move": ["lrsearch move runs/digits postgresql://me@host/studies", "lrsearch move postgresql://me@host/studies runs/digits"],
    "front": ["lrsearch front runs/study", "lrsearch front runs/study --json"],
    "report": ["lrsearch report runs/study"],
    "ask": ["lrsearch ask runs/study --budget params=0.25 --budget 'weight_bytes=300 KiB'"],
    "polish": ["lrsearch polish runs/study/models/0012", "lrsearch polish study.yaml runs/study/models/0012"],
    "recover": [
        "lrsearch recover runs/study --pick 'params_ratio<=0.3' --epochs 30", "lrsearch recover runs/study --study study.yaml --index 4",
    ],
    "fidelity": ["lrsearch fidelity runs/study --plans 16 --long 600"],
    "export": ["lrsearch export runs/study --index 4", "lrsearch export runs/study --study study.yaml --pick 'weight_bytes<=512 KiB'"],
    "verify": ["lrsearch verify runs/study/export", "lrsearch verify runs/study/export --study study.yaml"],
    "profile": ["lrsearch profile study.yaml --latency --out here.json"],
}
