{{/*
What is true of each service whoever deploys it: what it listens on, whom it calls, and which stores and secrets it needs.
`ports` are by name; every service also has the ops port. Who may call whom by gRPC follows from `calls`, and with it the
addresses in the environment and the network policies. `orders` is what it has to know of the order topic.
*/}}
{{- define "flash-sale.facts" -}}
gateway:
  ports: { http: 8080, operator: 8081 }
  calls: [token, inventory, order]
  stores: [redis]
  secrets: [payment-webhook-secret]
token:
  ports: { grpc: 9000 }
  calls: [inventory]
  stores: [redis]
  secrets: [purchase-token-keys]
inventory:
  ports: { grpc: 9000 }
  calls: []
  stores: [redis, mysql, kafka]
  orders: [topic, group]
  secrets: []
order:
  ports: { grpc: 9000 }
  calls: [inventory]
  stores: [mysql, kafka]
  orders: [topic, partitions, group]
  secrets: [purchase-token-keys]
order-writer:
  ports: {}
  calls: [inventory]
  stores: [mysql, kafka]
  orders: [topic, partitions, group, dlq-topic]
  secrets: [purchase-token-keys]
{{- end -}}

{{- define "flash-sale.opsPort" -}}9090{{- end -}}

{{/* What every object's name begins with, short enough for every suffix. Services find each other by it. */}}
{{- define "flash-sale.name" -}}
{{- if .Values.suiteName -}}
{{- .Values.suiteName -}}
{{- else if contains "flash-sale" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-flash-sale" (.Release.Name | trunc 29 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Labels by which pods are selected; they never change in a release's life. Takes {root, service}. */}}
{{- define "flash-sale.selector" -}}
app.kubernetes.io/part-of: flash-sale
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/name: {{ .service }}
{{- end -}}

{{- define "flash-sale.labels" -}}
{{ include "flash-sale.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* What is not secret of a service's environment, as the data of a ConfigMap. Takes {root, service, facts}. */}}
{{- define "flash-sale.config" -}}
{{- $values := .root.Values -}}
{{- $name := include "flash-sale.name" .root -}}
{{- $config := dict
  "SERVICE_NAME" .service
  "OPS_PORT" (include "flash-sale.opsPort" .root)
  "LOG_LEVEL" $values.logLevel
  "DRAIN_WAIT_MS" ($values.drainWaitMs | int | toString)
-}}
{{- with $values.telemetry.otlpEndpoint -}}
{{- $_ := set $config "OTEL_EXPORTER_OTLP_ENDPOINT" . -}}
{{- $_ := set $config "OTEL_TRACES_SAMPLER_ARG" ($values.telemetry.traceShare | toString) -}}
{{- end -}}
{{- if hasKey .facts.ports "grpc" -}}
{{- $_ := set $config "GRPC_HOST" "0.0.0.0" -}}
{{- $_ := set $config "GRPC_PORT" (.facts.ports.grpc | toString) -}}
{{- end -}}
{{- range .facts.calls -}}
{{- $_ := set $config (printf "%s_URL" (upper .)) (printf "%s-%s:9000" $name .) -}}
{{- end -}}
{{- if and (has "redis" .facts.stores) $values.redis.clusterNodes -}}
{{- $_ := set $config "REDIS_CLUSTER_NODES" (join "," $values.redis.clusterNodes) -}}
{{- end -}}
{{- if has "kafka" .facts.stores -}}
{{- $_ := set $config "KAFKA_BROKERS" (join "," $values.kafka.brokers) -}}
{{- $orders := dict
  "topic" $values.kafka.ordersTopic
  "partitions" ($values.kafka.ordersPartitions | int | toString)
  "group" $values.kafka.ordersGroup
  "dlq-topic" $values.kafka.deadLetterTopic
-}}
{{- range .facts.orders -}}
{{- $_ := set $config (printf "ORDERS_%s" (. | replace "-" "_" | upper)) (get $orders .) -}}
{{- end -}}
{{- end -}}
{{- if eq .service "gateway" -}}
{{- $_ := set $config "PORT" (.facts.ports.http | toString) -}}
{{- $_ := set $config "OPERATOR_PORT" (.facts.ports.operator | toString) -}}
{{- $_ := set $config "WEB_ROOT" "/service/web" -}}
{{- $_ := set $config "JWT_ALGORITHM" $values.identity.algorithm -}}
{{- $_ := set $config "JWT_AUDIENCE" $values.identity.audience -}}
{{- $_ := set $config "JWT_ISSUER" $values.identity.issuer -}}
{{- with $values.identity.jwksUrl -}}{{- $_ := set $config "JWT_JWKS_URL" . -}}{{- end -}}
{{- with $values.identity.publicKey -}}{{- $_ := set $config "JWT_PUBLIC_KEY" . -}}{{- end -}}
{{- if $values.ingress.enabled -}}
{{- $_ := set $config "TRUSTED_PROXY_HOPS" ($values.ingress.trustedProxyHops | toString) -}}
{{- end -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (index $values.services .service).env) -}}
{{- end -}}

{{/* Variable → key of the Secret, for what a service may not start without. Takes {root, facts, service}. */}}
{{- define "flash-sale.secretKeys" -}}
{{- $keys := dict -}}
{{- if and (has "redis" .facts.stores) (not .root.Values.redis.clusterNodes) -}}
{{- $_ := set $keys "REDIS_URL" "redis-url" -}}
{{- end -}}
{{- if has "mysql" .facts.stores -}}{{- $_ := set $keys "MYSQL_URL" "mysql-url" -}}{{- end -}}
{{- range .facts.secrets -}}
{{- $_ := set $keys (. | replace "-" "_" | upper) . -}}
{{- end -}}
{{- if and (eq .service "gateway") (eq .root.Values.identity.algorithm "HS256") -}}
{{- $_ := set $keys "JWT_HS256_SECRET" "jwt-hs256-secret" -}}
{{- end -}}
{{- toYaml $keys -}}
{{- end -}}

{{- define "flash-sale.image" -}}
{{- $image := .root.Values.image -}}
{{- $path := compact (list $image.registry $image.repository .service) | join "/" -}}
{{- printf "%s:%s" $path ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
