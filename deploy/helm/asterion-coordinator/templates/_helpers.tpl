{{- define "asterion.name" -}}
{{- printf "%s-%s" .Release.Name "asterion" | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "asterion.selector" -}}
app.kubernetes.io/name: asterion-coordinator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "asterion.labels" -}}
{{ include "asterion.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "asterion.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "asterion.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
