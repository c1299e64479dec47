"""The MQTT entrance. The only place that uses aiomqtt.

:class:`Mqtt` is one task of the process that answers; the service works as well without it.

- `client` is that task, made with `config`; `connection` is one connection to a broker, `client_id` its session's id,
  `topics` every topic there is.
- In: `reception` reads, `inbound` makes a command of a message, `command_queues` are fair to every user, `receipts`
  acknowledge in order.
- Out: `publication` of states, decisions and progress, `retained_states` of what is retained, `replies`
  (`reply_message`) to commands, all through `outbox`. `asyncapi` describes it.
"""

from migrator.mqtt.client import Mqtt
from migrator.mqtt.config import MqttConfig

__all__ = ["Mqtt", "MqttConfig"]
