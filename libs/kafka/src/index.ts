export type { AdapterLog } from './adapter-log.js';
export { KafkaAdmin, hasPassed, type LogBounds, type Offsets, type TopicSpec } from './admin.js';
export { type KafkaOptions } from './connection.js';
export {
  BatchConsumer,
  type Chunk,
  type ConsumedMessage,
  type ConsumerFigures,
  type ConsumerOptions,
} from './consumer.js';
export { partitionOf } from './partition.js';
export {
  SendFailed,
  SupervisedProducer,
  type OutgoingMessage,
  type ProducerOptions,
  type SentMessage,
} from './producer.js';
