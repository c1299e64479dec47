"""The MQTT entrance. The only place that uses aiomqtt.

:class:`Mqtt` is one task of the process that answers; the service works as well without it.
"""

from migrator.mqtt.client import Mqtt
from migrator.mqtt.config import MqttConfig

__all__ = ["Mqtt", "MqttConfig"]
