"""The MQTT entrance. The only place that uses aiomqtt.

:class:`Mqtt` is one task of the service; the service works as well without it.
"""

from migrator.mqtt.client import Mqtt
from migrator.mqtt.config import MqttConfig
from migrator.mqtt.replies import FindInitiator, InitiatingCommand

__all__ = ["FindInitiator", "InitiatingCommand", "Mqtt", "MqttConfig"]
