{{- define "finetune-operator.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" (.Release.Name | trunc 34 | trimSuffix "-") .Chart.Name }}{{ end }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.training-pods" -}}
app.kubernetes.io/managed-by: finetune-operator
finetune.dev/stage: train
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* What the operator may do with the objects of a namespace: the calls of finetune_operator/cluster.py, no more. */ -}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end }}
