{{/* The pod, the same in a Deployment and in a StatefulSet. */}}
{{- define "critiq.pod" -}}
metadata:
  labels:
    {{- include "critiq.selectorLabels" . | nindent 4 }}
    {{- with mergeOverwrite (dict) .Values.commonLabels .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A change of the settings replaces the pods.
    checksum/config: {{ include "critiq.settings" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "critiq.serviceAccountName" . }}
  automountServiceAccountToken: false
  # Variables named after Services, CRITIQ_... among them, would be taken for settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "critiq.graceSeconds" . }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := .Values.tolerations }}
  {{- if and .Values.gpu.enabled .Values.gpu.tolerate }}
  {{- $tolerations = append $tolerations (dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $selector := dict "labelSelector" (dict "matchLabels" (include "critiq.selectorLabels" $ | fromYaml)) }}
    - {{ merge (deepCopy .) $selector | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- if or .Values.initContainers (eq .Values.models.source "copy") }}
  initContainers:
    {{- if eq .Values.models.source "copy" }}
    - name: models
      image: {{ .Values.models.copy.image }}
      command: [cp, -R, {{ printf "%s/." .Values.models.copy.path | quote }}, /to]
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: models
          mountPath: /to
    {{- end }}
    {{- with .Values.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - {{ include "critiq.container" . | nindent 6 | trim }}
    {{- with .Values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "critiq.volumes" . | nindent 4 }}
{{- end -}}

{{- define "critiq.container" -}}
name: critiq
image: {{ include "critiq.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config
  - /etc/critiq/config/critiq.yaml
  {{- with .Values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $settings := include "critiq.settings" . | fromYaml }}
env:
  # The image sets these, and variables win over the file.
  - name: CRITIQ_SERVER__HOST
    value: {{ $settings.server.host | quote }}
  - name: CRITIQ_LOG__FORMAT
    value: {{ $settings.log.format }}
  - name: CRITIQ_MODELS__DIRECTORIES
    value: {{ dig "models" "directories" list $settings | toJson | quote }}
  {{- if .Values.redis.existingSecret }}
  - name: CRITIQ_FEATURES__REDIS__URL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.redis.existingSecret | quote }}
        key: {{ .Values.redis.key | quote }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: rest
    containerPort: {{ int .Values.settings.server.rest_port }}
  - name: grpc
    containerPort: {{ int .Values.settings.server.grpc_port }}
  - name: metrics
    containerPort: {{ int .Values.settings.server.metrics_port }}
startupProbe:
  {{- include "critiq.readyProbe" . | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ div (add .Values.probes.startupSeconds 4) 5 }}
readinessProbe:
  {{- include "critiq.readyProbe" . | nindent 2 }}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
livenessProbe:
  {{- include "critiq.liveProbe" . | nindent 2 }}
  {{- toYaml .Values.probes.liveness | nindent 2 }}
{{- if .Values.preStopSeconds }}
lifecycle:
  preStop:
    # Load balancers hear of the end later than the container does.
    sleep:
      seconds: {{ int .Values.preStopSeconds }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
resources:
  {{- $resources := deepCopy .Values.resources }}
  {{- if .Values.gpu.enabled }}
  {{- $_ := set $resources "limits" (set (default (dict) $resources.limits) .Values.gpu.resource (int .Values.gpu.count)) }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
volumeMounts:
  - name: config
    mountPath: /etc/critiq/config
    readOnly: true
  - name: data
    mountPath: /var/lib/critiq
  - name: tmp
    mountPath: /tmp
  {{- if ne .Values.models.source "builtin" }}
  - name: models
    mountPath: {{ .Values.models.mountPath }}
    readOnly: true
    {{- if and (eq .Values.models.source "claim") .Values.models.claim.subPath }}
    subPath: {{ .Values.models.claim.subPath | quote }}
    {{- end }}
  {{- end }}
  {{- if .Values.auth.existingSecret }}
  - name: keys
    mountPath: /etc/critiq/keys
    readOnly: true
  {{- end }}
  {{- if .Values.tls.existingSecret }}
  - name: tls
    mountPath: /etc/critiq/tls
    readOnly: true
  {{- end }}
  {{- if .Values.tls.clientCaSecret }}
  - name: client-ca
    mountPath: /etc/critiq/client-ca
    readOnly: true
  {{- end }}
  {{- if .Values.tls.requireClientCertificate }}
  - name: client
    mountPath: /etc/critiq/client
    readOnly: true
  {{- end }}
  {{- if .Values.callbacks.existingSecret }}
  - name: callbacks
    mountPath: /etc/critiq/callbacks
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Healthy once the default model is served; unhealthy again while stopping. */}}
{{- define "critiq.readyProbe" -}}
{{- include "critiq.probe" (dict "values" .Values "path" "/readyz") -}}
{{- end -}}

{{/* Healthy while the process answers, whatever its models do. */}}
{{- define "critiq.liveProbe" -}}
{{- include "critiq.probe" (dict "values" .Values "path" "/healthz" "service" "live") -}}
{{- end -}}

{{/* Kubernetes asks for health over gRPC without TLS only, and shows nobody a certificate. */}}
{{- define "critiq.probe" -}}
{{- $server := .values.settings.server -}}
{{- if not .values.tls.existingSecret -}}
grpc:
  port: {{ int $server.grpc_port }}
  {{- with .service }}
  service: {{ . }}
  {{- end }}
{{- else if not .values.tls.requireClientCertificate -}}
httpGet:
  scheme: HTTPS
  port: rest
  path: {{ .path }}
{{- else -}}
exec:
  command:
    - python
    - -ISc
    - |
      import http.client, ssl, sys
      context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
      context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # this very container
      context.load_cert_chain("/etc/critiq/client/tls.crt", "/etc/critiq/client/tls.key")
      server = http.client.HTTPSConnection("localhost", {{ int $server.rest_port }}, timeout=3, context=context)
      server.request("GET", {{ .path | quote }})
      sys.exit(server.getresponse().status != 200)
{{- end -}}
{{- end -}}

{{- define "critiq.volumes" -}}
- name: config
  configMap:
    name: {{ include "critiq.fullname" . }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.scratchSize }}
{{- if not .Values.persistence.enabled }}
- name: data
  emptyDir:
    sizeLimit: {{ .Values.scratchSize }}
{{- end }}
{{- $models := .Values.models }}
{{- if eq $models.source "claim" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ $models.claim.name | quote }}
    readOnly: true
{{- else if eq $models.source "copy" }}
- name: models
  emptyDir:
    {{- if $models.copy.sizeLimit }}
    sizeLimit: {{ $models.copy.sizeLimit }}
    {{- else }} {}
    {{- end }}
{{- else if eq $models.source "image" }}
- name: models
  image:
    {{- toYaml $models.image | nindent 4 }}
{{- else if eq $models.source "volume" }}
- name: models
  {{- toYaml $models.volume | nindent 2 }}
{{- end }}
{{- if .Values.auth.existingSecret }}
{{ include "critiq.secretVolume" (dict "name" "keys" "secret" .Values.auth.existingSecret) }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{ include "critiq.secretVolume" (dict "name" "tls" "secret" .Values.tls.existingSecret) }}
{{- end }}
{{- if .Values.tls.clientCaSecret }}
{{ include "critiq.secretVolume" (dict "name" "client-ca" "secret" .Values.tls.clientCaSecret "only" "ca.crt") }}
{{- end }}
{{- if .Values.tls.requireClientCertificate }}
{{ include "critiq.secretVolume" (dict "name" "client" "secret" .Values.tls.clientSecret) }}
{{- end }}
{{- if .Values.callbacks.existingSecret }}
{{ include "critiq.secretVolume" (dict "name" "callbacks" "secret" .Values.callbacks.existingSecret) }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "critiq.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret | quote }}
    defaultMode: 0440
    {{- with .only }}
    items:
      - key: {{ . }}
        path: {{ . }}
    {{- end }}
{{- end -}}
