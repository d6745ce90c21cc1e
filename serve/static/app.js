/** Starts the page: the theme, the two views, and the model's name. */
import { getModel } from "./api.js";
import { startChat } from "./chat.js";
import { startSchedule } from "./schedule.js";
import { startTabs } from "./tabs.js";
import { startTheme } from "./theme.js";

startTheme();
const chat = startChat();
const schedule = startSchedule();
startTabs({ chat: chat.show, schedule: schedule.show });
getModel().then(
  ({ id }) => {
    document.getElementById("model").textContent = id;
  },
  () => {}, // the first request will say what is wrong
);
