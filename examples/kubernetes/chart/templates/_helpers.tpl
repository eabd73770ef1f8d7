{{- define "secretagent.name" -}}
{{ .Values.nameOverride | default .Chart.Name }}
{{- end }}

{{- define "secretagent.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "secretagent.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The version of the policy's API that the cluster has; empty when it has none. */}}
{{- define "secretagent.policyAPI" -}}
{{- $group := "admissionregistration.k8s.io" }}
{{- range list "v1" "v1beta1" }}
{{- if $.Capabilities.APIVersions.Has (printf "%s/%s/MutatingAdmissionPolicy" $group .) }}{{ $group }}/{{ . }}{{ break }}{{ end }}
{{- end }}
{{- end }}

{{- /* The same, or the end. */}}
{{- define "secretagent.requirePolicyAPI" -}}
{{- include "secretagent.policyAPI" . | required (printf "this cluster (%s) does not serve MutatingAdmissionPolicy: Kubernetes does since 1.36, or 1.34 and 1.35 with the API server's flags --feature-gates MutatingAdmissionPolicy=true --runtime-config admissionregistration.k8s.io/v1beta1=true. Without it, --set mode=explicit writes the sidecar out for you to copy. (To helm template, say what the cluster has: --api-versions admissionregistration.k8s.io/v1/MutatingAdmissionPolicy)" .Capabilities.KubeVersion.Version) }}
{{- end }}

{{- /* The agent.yaml that the values describe, without templates; empty when they name no upstream. */}}
{{- define "secretagent.agent" -}}
{{- range list "templates" "secrets" }}
{{- if and (hasKey $.Values.agent .) (eq $.Values.mode "policy") }}
{{- fail (printf "agent.%s: belongs to the pods: use their annotations secretagent.io/secret-NAME and template-NAME, or a ConfigMap" .) }}
{{- end }}
{{- end }}
{{- $agent := fromYaml (include "secretagent.agentDefaults" .) }}
{{- if hasKey .Values.agent "upstream" }}{{ $_ := unset $agent "upstream" }}{{ end }}
{{- with mergeOverwrite $agent (deepCopy .Values.agent) }}
{{- if .upstream }}{{ toYaml . }}{{ end }}
{{- end }}
{{- end }}

{{- define "secretagent.agentDefaults" -}}
{{- with .Values.alibaba }}
{{- if .region }}
upstream:
  alibaba:
    endpoints:
      - {region: {{ .region }}{{ if .vpc }}, host: kms-vpc.{{ .region }}.aliyuncs.com{{ end }}}
    credentials: {type: default} # the variables of the sidecar
{{- end }}
{{- end }}
cache:
  sealed: # bridges a restart of the sidecar while KMS is down
    path: /run/secretagent/cache.db
    keyring: /run/secretagent-keys/keyring.json # which no application mounts
    maxBytes: 4MiB
endpoint:
  listen: 127.0.0.1:2025
  tokenFile: /run/secretagent/token
  tokenMode: "0640"
{{- with .Values.metricsPort }}
metrics:
  listen: 0.0.0.0:{{ . }}
{{- end }}
render:
  root: /run/secretagent
  stateDir: /run/secretagent/state
{{- end }}

{{- /*
The sidecar, once for both modes. For the policy it becomes CEL: a string that begins with "=" is an
expression, a key that begins with "?" is left out of an init container that ends (variables.once), and
one that begins with "*" where its value is the empty string.
*/}}
{{- define "secretagent.container" -}}
{{- $policy := eq .Values.mode "policy" -}}
{{- $running := $policy | ternary "?" "" -}}
name: secretagent
image: {{ $policy | ternary "=variables.image" (include "secretagent.image" .) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{ $running }}restartPolicy: Always
args: {{ $policy | ternary "=variables.args" "[run, --config, /etc/secretagent/agent.yaml]" }}
terminationMessagePolicy: FallbackToLogsOnError
{{- with .Values.metricsPort }}
{{ $running }}ports:
  - {name: metrics, containerPort: {{ . }}}
{{- end }}
{{- with .Values.alibaba }}
{{- if or .region .oidcProviderArn }}
env:
  {{- if .region }}
  - {name: ALIBABA_CLOUD_STS_REGION, value: {{ .region }}}
  - {name: ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED, value: {{ .vpc | quote }}}
  {{- end }}
  {{- if .oidcProviderArn }}
  - {name: ALIBABA_CLOUD_ROLE_ARN, value: {{ $policy | ternary "=variables.role" .roleArn | quote }}}
  - {name: ALIBABA_CLOUD_OIDC_PROVIDER_ARN, value: {{ .oidcProviderArn | quote }}}
  - {name: ALIBABA_CLOUD_OIDC_TOKEN_FILE, value: /var/run/secrets/rrsa/token}
  - {name: ALIBABA_CLOUD_ECS_METADATA_DISABLED, value: "true"} # a pod without a role has not that of the node
  {{- end }}
{{- end }}
{{- end }}
{{ $running }}startupProbe:
  exec: {command: [/secretagent, status, --ready, --wait, 5s, --address, "127.0.0.1:2025"]}
  periodSeconds: 1
  timeoutSeconds: 10
  failureThreshold: 12
{{ $running }}livenessProbe:
  exec: {command: [/secretagent, status, --live, --address, "127.0.0.1:2025"]}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
resources:
  {{- if $policy }}
  {{- range $kind, $name := dict "requests" "Request" "limits" "Limit" }}
  {{ $kind }}:
    {{- range $resource := list "cpu" "memory" }}
    "*{{ $resource }}": "=variables.{{ $resource }}{{ $name }}"
    {{- end }}
    {{- with omit (get $.Values.resources $kind | default dict) "cpu" "memory" }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- end }}
  {{- else }}{{ toYaml .Values.resources | nindent 2 }}
  {{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $policy | ternary "=variables.uid" 65532 }}
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: secretagent-config, mountPath: /etc/secretagent, readOnly: true}
  - {name: secretagent-rrsa, mountPath: /var/run/secrets/rrsa, readOnly: true}
  - {name: secretagent-files, mountPath: /run/secretagent}
  - {name: secretagent-keys, mountPath: /run/secretagent-keys}
  # Where this is mounted, no token for the API server will be.
  - {name: secretagent-none, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{- /* The volumes besides secretagent-config. */}}
{{- define "secretagent.volumes" -}}
- name: secretagent-rrsa
  projected:
    sources:
      - serviceAccountToken: {audience: sts.aliyuncs.com, expirationSeconds: 3600, path: token}
- name: secretagent-files
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.sizeLimit | quote }}}
- name: secretagent-keys
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: secretagent-none
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}

{{- /* A value as CEL, which wants the values of a map, and the elements of a list, to be of one type. */}}
{{- define "secretagent.cel" -}}
{{- if kindIs "map" . -}}
{{- $strings := true }}
{{- range $key, $value := . }}{{ if or (not (kindIs "string" $value)) (hasPrefix "=" $value) (hasPrefix "?" $key) }}{{ $strings = false }}{{ end }}{{ end -}}
{ {{- range $i, $key := keys . | sortAlpha }}{{ if $i }}, {{ end }}{{ include "secretagent.celEntry" (list $key (get $ $key) $strings) }}{{ end }}}
{{- else if kindIs "slice" . -}}
[{{ range $i, $value := . }}{{ if $i }}, {{ end }}{{ if kindIs "map" $value }}dyn({{ include "secretagent.cel" $value }}){{ else }}{{ include "secretagent.cel" $value }}{{ end }}{{ end }}]
{{- else if and (kindIs "string" .) (hasPrefix "=" .) -}}
{{ trimPrefix "=" . }}
{{- else -}}
{{ toJson . }}
{{- end }}
{{- end }}

{{- define "secretagent.celEntry" }}
{{- $key := first . }}
{{- $value := include "secretagent.cel" (index . 1) -}}
{{- if hasPrefix "?" $key -}}
?{{ trimPrefix "?" $key | quote }}: variables.once ? optional.none() : optional.of(dyn({{ $value }}))
{{- else if hasPrefix "*" $key -}}
?{{ trimPrefix "*" $key | quote }}: {{ $value }} == '' ? optional.none() : optional.of(dyn({{ $value }}))
{{- else -}}
{{ $key | quote }}: {{ if last . }}{{ $value }}{{ else }}dyn({{ $value }}){{ end }}
{{- end }}
{{- end }}

{{- /* The quantity that an annotation gives, if it is one, else the default. */}}
{{- define "secretagent.quantity" -}}
variables.annotations[?'secretagent.io/{{ .annotation }}'].orValue('').matches({{ include "secretagent.quantityPattern" . }}) ? variables.annotations['secretagent.io/{{ .annotation }}'] : '{{ .default }}'
{{- end }}

{{- define "secretagent.quantityPattern" -}}
'^[0-9]*[1-9][0-9]*([.][0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$|^0*[.][0-9]*[1-9][0-9]*$'
{{- end }}

{{- /* Which pods the policies look at: none that refuses, or that a namespace or the kubelet owns. */}}
{{- define "secretagent.objectSelector" -}}
objectSelector:
  matchExpressions:
    - {key: secretagent.io/inject, operator: NotIn, values: ["false"]}
{{- end }}

{{- define "secretagent.matchConditions" -}}
- name: not-of-the-kubelet # mirrors of static pods may not differ from these
  expression: "!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))"
{{- end }}

{{- /* What both policies ask of a pod. Variables hold plain values only. */}}
{{- define "secretagent.variables" -}}
- name: annotations
  expression: object.metadata.?annotations.orValue({})
- name: namespaceSays
  expression: namespaceObject.metadata.?labels[?'secretagent.io/inject'].orValue('')
- name: asked # by the label of the pod, or of its namespace, or by the annotation that Alibaba's injector knows
  expression: >-
    object.metadata.?labels[?'secretagent.io/inject'].orValue(
      variables.namespaceSays == 'annotated'
      ? variables.annotations[?'kms-agent-webhook-injector/inject'].orValue('')
      : variables.namespaceSays) == 'true'
- name: containers # besides the sidecar
  expression: >-
    (object.spec.containers.map(c, c.name) + object.spec.?initContainers.orValue([]).map(c, c.name))
    .filter(n, n != 'secretagent')
- name: names # of those that see token and files
  expression: >-
    'secretagent.io/containers' in variables.annotations
    ? variables.annotations['secretagent.io/containers'].split(',').map(n, n.trim())
    : variables.containers
- name: files
  expression: >-
    variables.annotations.filter(k, k.startsWith('secretagent.io/template-') || k.startsWith('secretagent.io/secret-'))
    .map(k, k.substring(k.indexOf('-') + 1))
- name: there
  expression: (object.spec.containers + object.spec.?initContainers.orValue([])).exists(c, c.name == 'secretagent')
- name: injected
  expression: variables.there && variables.annotations[?'secretagent.io/status'].orValue('') == 'injected'
- name: taken # names of volumes that would be the sidecar's
  expression: >-
    object.spec.?volumes.orValue([]).filter(v, v.name.startsWith('secretagent-')).map(v, v.name)
- name: wanted # and not written by hand
  expression: >-
    variables.asked && !object.spec.?hostNetwork.orValue(false) && object.spec.?os.?name.orValue('linux') == 'linux' &&
    (variables.injected || !variables.there && variables.taken.size() == 0)
{{- end }}

{{- /* Pods that ask, and pods without a word of their own in namespaces that ask for them. */}}
{{- define "secretagent.bindings" }}
{{- $name := include "secretagent.name" .root }}
---
apiVersion: {{ .api }}
kind: {{ .kind }}
metadata:
  name: {{ $name }}
  labels:
    {{- include "secretagent.labels" .root | nindent 4 }}
spec:
  policyName: {{ $name }}
  {{- with .actions }}
  validationActions: {{ . }}
  {{- end }}
  matchResources:
    matchPolicy: Equivalent
    objectSelector:
      matchExpressions:
        - {key: secretagent.io/inject, operator: Exists}
    namespaceSelector: {}
---
apiVersion: {{ .api }}
kind: {{ .kind }}
metadata:
  name: {{ $name }}-namespaces
  labels:
    {{- include "secretagent.labels" .root | nindent 4 }}
spec:
  policyName: {{ $name }}
  {{- with .actions }}
  validationActions: {{ . }}
  {{- end }}
  matchResources:
    matchPolicy: Equivalent
    objectSelector:
      matchExpressions:
        - {key: secretagent.io/inject, operator: DoesNotExist}
    namespaceSelector:
      matchExpressions:
        - {key: secretagent.io/inject, operator: In, values: ["true", annotated]}
{{- end }}

{{- /* What an annotation may say, as a pattern of CEL. */}}
{{- define "secretagent.rules" -}}
config: {pattern: "'^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$'", message: not the name of a ConfigMap}
role: {pattern: "'^acs:ram::[0-9]+:role/[A-Za-z0-9._-]+$'", message: "not the ARN of a RAM role, acs:ram::ACCOUNT:role/NAME"}
run-as-user: {pattern: "'^[1-9][0-9]{0,8}$'", message: "not the number of a user, from 1 to 999999999"}
pre-populate-only: {pattern: "'^(true|false)$'", message: 'neither \"true\" nor \"false\"'}
log-level: {pattern: "'^(debug|info|warn|error)$'", message: "not debug, info, warn or error"}
{{- range list "cpu-limit" "cpu-request" "memory-limit" "memory-request" }}
{{ . }}: {pattern: {{ include "secretagent.quantityPattern" . | quote }}, message: "not a quantity such as 100m or 64Mi"}
{{- end }}
{{- end }}

{{- define "secretagent.fileRules" -}}
{{- $secret := "(acs:kms:[A-Za-z0-9-]*:[A-Za-z0-9-]*:secret/)?[A-Za-z0-9_/+=.@-]{1,192}(:[A-Za-z0-9_/+=.@-]{1,64})?" }}
secret: {pattern: "'^ *{{ $secret }}( *, *{{ $secret }})* *$'", message: "not the name of a secret, with :Label where it is not ACSCurrent, or several with commas between"}
template: {pattern: "'.'", message: no template}
format: {pattern: "'^(env|shell|docker|json|yaml|toml|properties|raw|pem)$'", message: "not env, shell, docker, json, yaml, toml, properties, raw or pem"}
mode: {pattern: "'^0[4-7][0-7][0145]$'", message: "not the mode of a file such as 0640, which its owner reads and not everybody writes"}
hook: {pattern: "'^http://(127[.]0[.]0[.]1|localhost)(:[0-9]{1,5})?(/([A-Za-z0-9/._~:@!$&()*+,;=?-]|%[0-9A-Fa-f]{2})*)?$'", message: "not a URL of the pod such as http://127.0.0.1:8080/reload"}
{{- end }}
