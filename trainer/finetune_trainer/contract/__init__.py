"""What the operator writes and the trainer reads, and what the trainer answers.

This package imports neither torch nor Kubernetes, so that both sides can depend on it:

* `spec`: the part of a FineTuneJob's spec that the trainer understands, with every default of it
* `outcome`: its groups about what is made of the trained adapter; `group`: what all groups are made of
* `job`: the YAML document that carries it
* `paths`: where everything lies on the two filesystems
* `termination`: the reasons and the message with which a container ends
* `progress`: how far a training has come, while it runs and when it has ended
* `preflight`: what prepare found in the data, in short
* `evaluation`: what base and tuned model are worth, and whether the gate is met
* `report`: what a container's reports are made of
* `series`: the names of the Prometheus series and the port that serves them
* `environment`: the environment variables that tell a process where it stands in the gang
"""
