{{/* The services, in the order of the data's way. */}}
{{- define "millrace.services" -}}discovery scraper {{ if .Values.ingest.enabled }}ingest {{ end }}relabel writer{{- end }}

{{/* What objects of the release are called. */}}
{{- define "millrace.name" -}}
{{- if contains "millrace" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-millrace" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels that never change, by which objects find pods. Takes a list: the root and the service, or "" for all. */}}
{{- define "millrace.selector" -}}
{{- $root := index . 0 -}}
{{- $service := index . 1 -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with $service }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end }}

{{/* The configuration, with what the chart knows of NATS. */}}
{{- define "millrace.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $millrace := default dict $config.millrace -}}
{{- $_ := set $millrace "nats" (mergeOverwrite (default dict $millrace.nats) (dict "url" .Values.nats.url)) -}}
{{- $_ := set $millrace "streams" (mergeOverwrite (default dict $millrace.streams) (dict "replicas" .Values.nats.replicas)) -}}
{{- $_ := set $config "millrace" $millrace -}}
{{ toYaml $config }}
{{- end }}
