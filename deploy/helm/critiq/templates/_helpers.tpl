{{- define "critiq.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* 50 characters, as the names of pods and of the headless Service are longer. */}}
{{- define "critiq.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "critiq.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "critiq.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "critiq.headless" -}}
{{- printf "%s-headless" (include "critiq.fullname" .) -}}
{{- end -}}

{{- define "critiq.selectorLabels" -}}
app.kubernetes.io/name: {{ include "critiq.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "critiq.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "critiq.labels" -}}
{{ include "critiq.selectorLabels" . }}
{{ include "critiq.commonLabels" . }}
{{- end -}}

{{- define "critiq.metadata" -}}
name: {{ include "critiq.fullname" . }}
namespace: {{ .Release.Namespace | quote }}
labels:
  {{- include "critiq.labels" . | nindent 2 }}
{{- end -}}

{{- define "critiq.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "critiq.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "critiq.image" -}}
{{- $tag := printf "%s%s" .Chart.AppVersion (.Values.gpu.enabled | ternary (printf "-%s" .Values.gpu.target) "") -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default $tag .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "critiq.workloadKind" -}}
{{- .Values.persistence.enabled | ternary "StatefulSet" "Deployment" -}}
{{- end -}}

{{/* What the server is configured with: what follows from other values, below what .Values.settings says. */}}
{{- define "critiq.settings" -}}
{{- $ours := dict -}}
{{- if ne .Values.models.source "builtin" -}}
{{- $_ := set $ours "models" (dict "directories" (list .Values.models.mountPath)) -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}
{{- $_ := set $ours "runtime" (dict "provider" (eq .Values.gpu.target "tensorrt" | ternary "engine" "cuda")) -}}
{{- end -}}
{{- $security := dict -}}
{{- if .Values.auth.existingSecret -}}
{{- $_ := set $security "keys_file" (printf "/etc/critiq/keys/%s" .Values.auth.key) -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $tls := dict "certificate" "/etc/critiq/tls/tls.crt" "key" "/etc/critiq/tls/tls.key" -}}
{{- if .Values.tls.clientCaSecret -}}
{{- $_ := set $tls "client_ca" "/etc/critiq/client-ca/ca.crt" -}}
{{- $_ := set $tls "require_client_certificate" .Values.tls.requireClientCertificate -}}
{{- end -}}
{{- $_ := set $security "tls" $tls -}}
{{- end -}}
{{- if $security -}}
{{- $_ := set $ours "security" $security -}}
{{- end -}}
{{- if .Values.callbacks.existingSecret -}}
{{- $file := printf "/etc/critiq/callbacks/%s" .Values.callbacks.key -}}
{{- $_ := set $ours "jobs" (dict "callbacks" (dict "secrets_file" $file)) -}}
{{- end -}}
{{- mergeOverwrite $ours (deepCopy .Values.settings) | toYaml -}}
{{- end -}}

{{/* The part of a URL before its host. */}}
{{- define "critiq.restScheme" -}}{{ .Values.tls.existingSecret | empty | ternary "http" "https" }}{{- end -}}
{{- define "critiq.grpcScheme" -}}{{ .Values.tls.existingSecret | empty | ternary "grpc" "grpcs" }}{{- end -}}

{{- define "critiq.hasRedis" -}}
{{- if or .Values.redis.existingSecret (dig "features" "redis" "url" "" .Values.settings) -}}true{{- end -}}
{{- end -}}

{{- define "critiq.drainSeconds" -}}
{{- .Values.settings.server.drain_seconds | float64 | ceil | int -}}
{{- end -}}

{{/* The server closes its connections and models after draining. */}}
{{- define "critiq.graceSeconds" -}}
{{- $needed := add .Values.preStopSeconds (include "critiq.drainSeconds" .) 15 | int -}}
{{- default $needed (int .Values.terminationGracePeriodSeconds) -}}
{{- end -}}

{{/* What the schema cannot say, because it is about several values at once. */}}
{{- define "critiq.check" -}}
{{- $jobs := dig "jobs" "path" "" .Values.settings -}}
{{- $scaled := ne .Values.autoscaling.kind "none" -}}
{{- if and $jobs (not .Values.persistence.enabled) -}}
{{- fail "settings.jobs.path: jobs would be lost with their pod; set persistence.enabled: true and a path below /var/lib/critiq" -}}
{{- end -}}
{{- if and $jobs (or $scaled (gt (int .Values.replicaCount) 1)) -}}
{{- fail "settings.jobs.path: a job is known to the pod alone that took it; set replicaCount: 1 and autoscaling.kind: none, in a release of its own if the other pods must be many" -}}
{{- end -}}
{{- if has .Values.settings.server.host (list "127.0.0.1" "::1" "localhost") -}}
{{- fail (printf "settings.server.host is %s, where nobody outside the pod reaches the server; use 0.0.0.0 (:: with IPv6 alone)" .Values.settings.server.host) -}}
{{- end -}}
{{- if lt (int (include "critiq.graceSeconds" .)) (add .Values.preStopSeconds (include "critiq.drainSeconds" .) | int) -}}
{{- fail (printf "terminationGracePeriodSeconds is %v, but preStopSeconds and settings.server.drain_seconds take %v: what was accepted would be cut off" .Values.terminationGracePeriodSeconds (add .Values.preStopSeconds (include "critiq.drainSeconds" .))) -}}
{{- end -}}
{{- if and .Values.tls.clientCaSecret (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCaSecret: set tls.existingSecret too; without TLS nobody is asked for a certificate" -}}
{{- end -}}
{{- if and .Values.tls.requireClientCertificate (not (and .Values.tls.clientCaSecret .Values.tls.clientSecret)) -}}
{{- fail "tls.requireClientCertificate: set tls.clientCaSecret, which says whose certificates are taken, and tls.clientSecret, with which the probes show one" -}}
{{- end -}}
{{- if dig "security" "tls" "certificate" "" .Values.settings -}}
{{- fail "settings.security.tls.certificate: use tls.existingSecret, so that the probes and Prometheus speak TLS too" -}}
{{- end -}}
{{- $update := .Values.updateStrategy -}}
{{- if and (has (toString $update.maxUnavailable) (list "0" "0%")) (has (toString $update.maxSurge) (list "0" "0%")) -}}
{{- fail "updateStrategy: with maxUnavailable and maxSurge both 0 no pod could be replaced" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas (%v) is more than autoscaling.maxReplicas (%v)" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress: say where Prometheus is, for instance http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- if and $scaled .Values.autoscaling.cpuPercent (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.cpuPercent counts percent of resources.requests.cpu, which is not set; set one, or the other to 0" -}}
{{- end -}}
{{- $needs := dict "claim" "name" "copy" "image" "image" "reference" -}}
{{- with get $needs .Values.models.source -}}
{{- if not (get (get $.Values.models $.Values.models.source) .) -}}
{{- fail (printf "models.source is %s: set models.%s.%s" $.Values.models.source $.Values.models.source .) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.models.source "volume") (not .Values.models.volume) -}}
{{- fail "models.source is volume: set models.volume to a volume's source, for instance {nfs: {server: files, path: /bundles}}" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.auth.existingSecret (not .Values.metrics.serviceMonitor.keySecret.name) -}}
{{- fail "metrics.serviceMonitor.keySecret.name: with auth.existingSecret Prometheus needs a key of the scope metrics" -}}
{{- end -}}
{{- range $face := list "rest" "grpc" -}}
{{- $ingress := get $.Values.ingress $face -}}
{{- if and $ingress.enabled (not $ingress.hosts) -}}
{{- fail (printf "ingress.%s.hosts: name at least one host" $face) -}}
{{- end -}}
{{- $route := get $.Values.gateway $face -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- fail (printf "gateway.%s.parentRefs: name the Gateway" $face) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "critiq.testLabels" -}}
app.kubernetes.io/name: {{ include "critiq.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: test
{{- end -}}
