{{/* By what the DaemonSet finds its pods. Kubernetes lets nobody change it. */}}
{{- define "bulkhead.selector" -}}
app.kubernetes.io/name: bulkhead
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bulkhead.labels" -}}
{{ include "bulkhead.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "bulkhead.name" -}}
{{ printf "%s-installer" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "bulkhead.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The settings in lines "table.key = value": what JSON says of a string, number, boolean or list, TOML says as well. */}}
{{- define "bulkhead.settings" -}}
{{- if dig "sandboxer" "listen" "" .Values.settings }}
{{- fail "settings.sandboxer.listen cannot be set: containerd's drop-in names the shipped socket" }}
{{- end }}
{{- range $table, $keys := .Values.settings }}
{{- range $key, $value := $keys }}
{{ $table }}.{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $name, $tables := .Values.profiles }}
profile.{{ $name }}.listen = {{ toJson (printf "/run/bulkhead/%s.sock" $name) }}
{{- range $table, $keys := $tables }}
{{- range $key, $value := $keys }}
profile.{{ $name }}.{{ $table }}.{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the pods of every RuntimeClass go. */}}
{{- define "bulkhead.runtimeClassScheduling" -}}
scheduling:
  nodeSelector:
    {{- toYaml .Values.runtimeClass.nodeSelector | nindent 4 }}
  {{- with .Values.runtimeClass.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
